"""One page about several models, of one run folder or of several, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from tiling.files import write_text
from wsi_pipeline.errors import ReportError
from wsi_pipeline.evaluation.compare import compare_models
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.report import curves
from wsi_pipeline.report.build import (
    HEADLINES,
    PATCH_FIGURES,
    RATES,
    SLIDE_FIGURES,
    compare_figures,
    read_froc_table,
    read_headlines,
)
from wsi_pipeline.report.charts import Chart
from wsi_pipeline.report.figures import write_chart
from wsi_pipeline.report.gather import DEFINITIONS, ModelFiles, read_evaluated_models
from wsi_pipeline.report.image_comparison import build_image_comparison
from wsi_pipeline.report.page import read_difference, render_page

PAIRED_FIGURES = {
    "patch.roc_auc": "ROC AUC of patches",
    "slide.roc_auc": "ROC AUC of slides",
    "slide.average_precision": "average precision of slides",
    "froc_camelyon16.score": "FROC score, CAMELYON16",
    "froc_patch.score": "FROC score, patches",
}


@dataclass(frozen=True)
class Contestant:
    """A model of a run."""

    run: str
    folder: Path  # evaluation/<model>
    model: ModelFiles  # under the name that is shown


def build_comparison(
    runs: Sequence[Path],
    out: Path,
    *,
    models: Sequence[str] = (),
    replicates: int = 1000,
    seed: int = 0,
) -> Path:
    """Write ``compare.html``, ``comparison.json``, and the curves for papers under ``figures/``.

    Of runs on image folders the page and the JSON file: `image_comparison`.

    Parameters
    ----------
    runs : sequence of Path
        Run folders that are evaluated.
    out : Path
        Folder for the page.
    models : sequence of str
        Which models to show, of any of the runs; empty: all that are evaluated.
    replicates, seed : int
        Resampled sets of patients, for the paired differences.

    Returns
    -------
    page : Path
        One HTML file that needs no other file and no network. Equal runs give equal bytes.

    Raises
    ------
    EvaluationError
        If two models share no slide, or were evaluated against different references.
    ReportError
        If there are not two models to compare, a named one is not there, or a file is broken.
    StageError
        If one of `runs` is no run folder.
    """
    of_images = [RunFolder(run).images.is_file() for run in runs]
    if any(of_images):
        if not all(of_images):
            raise ReportError("runs on slides and on images cannot be compared; name one kind")
        named = list(zip(_name_runs(runs), runs, strict=True))
        return build_image_comparison(named, out, models=models, replicates=replicates, seed=seed)
    chosen = _choose(runs, models)
    shown = [contestant.model for contestant in chosen]
    charts = {name: chart for name, chart in _draw(shown).items() if chart is not None}
    for name, chart in charts.items():
        write_chart(out / "figures" / name, chart)
    pairs = _compare_pairs(chosen, out, replicates=replicates, seed=seed)
    values: dict[str, Any] = {
        "contestants": chosen,
        "shown": shown,
        "headlines": list(
            zip(HEADLINES, zip(*map(read_headlines, shown), strict=True), strict=True)
        ),
        "slide_figures": compare_figures(shown, "slide", SLIDE_FIGURES),
        "patch_figures": compare_figures(shown, "patch", PATCH_FIGURES),
        "froc_tables": {name: read_froc_table(shown, name) for name in DEFINITIONS},
        "charts": charts,
        "rates": RATES,
        "pairs": pairs,
        "differing": _find_differing(shown),
    }
    page = out / "compare.html"
    write_text(page, render_page("compare.html.j2", values))
    return page


def _choose(runs: Sequence[Path], models: Sequence[str]) -> list[Contestant]:
    names = _name_runs(runs)
    found = [
        Contestant(name, run / "evaluation" / model.name, model)
        for name, run in zip(names, runs, strict=True)
        for model in read_evaluated_models(run)
    ]
    known = {contestant.model.name for contestant in found}
    unknown = [name for name in models if name not in known]
    if unknown:
        raise ReportError(
            f"no evaluated model {', '.join(unknown)} in {', '.join(names)}; "
            f"there is {', '.join(sorted(known)) or 'none'}"
        )
    chosen = [c for c in found if not models or c.model.name in models]
    if len(chosen) < 2:
        raise ReportError(
            f"{len(chosen)} evaluated model in {', '.join(names)}: nothing to compare; evaluate "
            "another one, or name another run folder"
        )
    if len(set(names)) == 1:
        return chosen
    return [replace(c, model=replace(c.model, name=f"{c.run}: {c.model.name}")) for c in chosen]


def _name_runs(runs: Sequence[Path]) -> list[str]:
    """Name runs by their folders; where two share a name, by the folder above as well."""
    paths = [run.resolve() for run in runs]
    if len(set(paths)) < len(paths):
        raise ReportError("a run folder is named twice; name each once")
    names = [path.name for path in paths]
    return [
        path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}"
        for path in paths
    ]


def _compare_pairs(
    chosen: Sequence[Contestant], out: Path, *, replicates: int, seed: int
) -> list[dict[str, Any]]:
    """Compare each pair on the same resampled patients; writes ``comparison.json``."""
    found = compare_models(
        [contestant.folder for contestant in chosen],
        out=out / "comparison.json",
        replicates=replicates,
        seed=seed,
    )
    names = [contestant.model.name for contestant in chosen]
    return [
        {**pair, "names": both, "lines": _pair_lines(pair)}
        for both, pair in zip(combinations(names, 2), found, strict=True)
    ]


def _pair_lines(pair: dict[str, Any]) -> list[dict[str, Any]]:
    """Give one line per figure: its name, both values, their difference and the p-values."""
    lines = []
    for key, name in PAIRED_FIGURES.items():
        figure = pair["figures"].get(key)
        if figure is not None:
            lines.append({"name": name, **figure, "difference": read_difference(pair, key)})
    return lines


def _draw(models: Sequence[ModelFiles]) -> dict[str, Chart | None]:
    return {
        "roc_slides": curves.chart_slide_roc(models),
        "roc_patches": curves.chart_patch_roc(models),
        "pr_patches": curves.chart_precision_recall(models),
        "reliability": curves.chart_reliability(models),
        **{f"froc_{name}": curves.chart_froc(models, name) for name in DEFINITIONS},
    }


def _find_differing(models: Sequence[ModelFiles]) -> list[str]:
    """Name the models that were evaluated on other slides than the first one."""
    slides = [{(row["slide_id"], row.get("label")) for row in model.slides} for model in models]
    return [m.name for m, own in zip(models, slides, strict=True) if own != slides[0]]
