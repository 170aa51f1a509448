"""One page about several models, of one run folder or of several, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from tiling.files import write_text
from wsi_pipeline.cohort.manifest import read_run_manifest
from wsi_pipeline.contracts import DEFINITIONS
from wsi_pipeline.errors import ReportError
from wsi_pipeline.evaluation.compare import Evaluated, compare_models
from wsi_pipeline.evaluation.compare_images import read_evaluated_images
from wsi_pipeline.evaluation.compare_slides import read_evaluated_slides
from wsi_pipeline.evaluation.image_evaluation import summarise
from wsi_pipeline.evaluation.metrics import IMAGE, PATCH, SLIDE, compared_titles, titles_of
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.report import curves
from wsi_pipeline.report.build import (
    FROC_TITLES,
    HEADLINES,
    RATES,
    compare_figures,
    read_froc_table,
    read_headlines,
)
from wsi_pipeline.report.figures import write_chart
from wsi_pipeline.report.gather import read_model
from wsi_pipeline.report.page import read_difference, read_figure, render_page


@dataclass(frozen=True)
class Contestant:
    """A model of a run."""

    run_name: str
    run: RunFolder
    model: str
    name: str  # as it is shown


def build_comparison(
    runs: Sequence[Path],
    out: Path,
    *,
    models: Sequence[str] = (),
    replicates: int = 1000,
    seed: int = 0,
) -> Path:
    """Write ``compare.html``, ``comparison.json``, and of slides the curves under ``figures/``.

    Parameters
    ----------
    runs : sequence of Path
        Run folders that are evaluated, all on slides or all on folders of images.
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
        If two models share no slide or image, or were evaluated against different references.
    ReportError
        If there are not two models to compare, a named one is not there, or a file is broken.
    StageError
        If one of `runs` is no run folder.
    """
    of_images = [RunFolder(run).images.is_file() for run in runs]
    if any(of_images) and not all(of_images):
        raise ReportError("runs on slides and on images cannot be compared; name one kind")
    chosen = _choose(runs, models)
    evaluated, values = _show_images(chosen) if any(of_images) else _show_slides(chosen, out)
    pairs = compare_models(evaluated, out=out / "comparison.json", replicates=replicates, seed=seed)
    names = combinations([contestant.name for contestant in chosen], 2)
    values |= {
        "contestants": chosen,
        "pairs": [
            {**pair, "names": both, "lines": _pair_lines(pair)}
            for both, pair in zip(names, pairs, strict=True)
        ],
    }
    page = out / "compare.html"
    write_text(page, render_page("compare.html.j2", values))
    return page


def _choose(runs: Sequence[Path], models: Sequence[str]) -> list[Contestant]:
    names = _name_runs(runs)
    found = [
        Contestant(name, run, model, model if len(runs) == 1 else f"{name}: {model}")
        for name, run in zip(names, map(RunFolder, runs), strict=True)
        for model in _list_evaluated(run)
    ]
    known = {contestant.model for contestant in found}
    unknown = [name for name in models if name not in known]
    if unknown:
        raise ReportError(
            f"no evaluated model {', '.join(unknown)} in {', '.join(names)}; "
            f"there is {', '.join(sorted(known)) or 'none'}"
        )
    chosen = [c for c in found if not models or c.model in models]
    if len(chosen) < 2:
        raise ReportError(
            f"{len(chosen)} evaluated model in {', '.join(names)}: nothing to compare; evaluate "
            "another one, or name another run folder"
        )
    return chosen


def _list_evaluated(run: RunFolder) -> list[str]:
    if not run.images.is_file():
        read_run_manifest(run)
    found = run.models_with("evaluation")
    names = [name for name in found if (run.evaluation(name) / "metrics.json").is_file()]
    if not names:
        raise ReportError(
            f"{run.path}: no model is evaluated; run: wsi-pipeline evaluate {run.path}"
        )
    return names


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


def _pair_lines(pair: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one line per figure: its name, both values, their difference and the p-values."""
    titles = {f"froc_{name}.score": title for name, title in FROC_TITLES.items()}
    for level, prefix in ((PATCH, "patch."), (SLIDE, "slide."), (IMAGE, "")):
        titles |= {prefix + name: title for name, title in compared_titles(level).items()}
    return [
        {"name": titles[key], **figure, "difference": read_difference(pair, key)}
        for key, figure in pair["figures"].items()
    ]


# ------------------------------------------------------------ images


def _show_images(chosen: Sequence[Contestant]) -> tuple[list[Evaluated], dict[str, Any]]:
    """Read models of runs on images, and what the page shows of them."""
    models = [
        read_evaluated_images(c.run.evaluation(c.model), c.run.path / "scores" / c.model, c.name)
        for c in chosen
    ]
    figures = [summarise(list(model.images.values()), model.rule) for model in models]
    titles = titles_of("image") | {"loss": "cross-entropy"}
    return list(models), {
        "unit": "image",
        "n_units": len(models[0].images),
        "differing": _find_differing(chosen, [set(model.images) for model in models]),
        "headlines": [
            (title, [read_figure(f.values, key, f.undefined) for f in figures])
            for key, title in titles.items()
        ],
        "charts": None,
        "facts": [
            {
                "run folder": contestant.run_name,
                "split": model.split,
                "class 1 if": str(model.rule),
                "images": str(len(model.images)),
            }
            for contestant, model in zip(chosen, models, strict=True)
        ],
    }


def _find_differing(chosen: Sequence[Contestant], units: Sequence[set[Any]]) -> list[str]:
    """Name the models that were evaluated on other slides or images than the first one."""
    return [c.name for c, own in zip(chosen, units, strict=True) if own != units[0]]


# ------------------------------------------------------------ slides


def _show_slides(chosen: Sequence[Contestant], out: Path) -> tuple[list[Evaluated], dict[str, Any]]:
    """Read models of runs on slides, and what the page shows of them; writes the curves."""
    shown = [replace(read_model(c.run, c.model, ()), name=c.name) for c in chosen]
    charts = curves.chart_models(shown)
    for name, chart in charts.items():
        write_chart(out / "figures" / name, chart)
    units = [{(row["slide_id"], row.get("label")) for row in model.slides} for model in shown]
    headlines = zip(HEADLINES, zip(*map(read_headlines, shown), strict=True), strict=True)
    models = [read_evaluated_slides(c.run.evaluation(c.model)) for c in chosen]
    return list(models), {
        "unit": "slide",
        "n_units": len(shown[0].slides),
        "differing": _find_differing(chosen, units),
        "headlines": list(headlines),
        "slide_figures": compare_figures(shown, "slide", titles_of("slide")),
        "patch_figures": compare_figures(shown, "patch", titles_of("patch")),
        "froc_tables": {name: read_froc_table(shown, name) for name in DEFINITIONS},
        "charts": charts,
        "rates": RATES,
        "facts": [
            {
                "run folder": contestant.run_name,
                "checkpoint, SHA-256": model.checkpoint_digest or "not in the run folder",
            }
            for contestant, model in zip(chosen, shown, strict=True)
        ],
    }
