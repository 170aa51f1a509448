"""Compose the report: gather, compute what tables show, render one HTML file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tiling.files import write_text
from wsi_pipeline import __version__
from wsi_pipeline.contracts import SPLITS
from wsi_pipeline.errors import ReportError
from wsi_pipeline.report import curves
from wsi_pipeline.report.gather import CohortSlide, ModelFiles, Row, RunFiles, gather_run
from wsi_pipeline.report.pictures import embed_picture
from wsi_pipeline.runfolder import RunFolder

Confusion = Mapping[str, int]

# The lecture's VGG16 on all its CAMELYON16 test slides, at F(I) >= 0.75.
LECTURE_CONFUSION: Confusion = {"tp": 24_796, "fn": 4_340, "fp": 5_345, "tn": 158_754}

_CELLS = ("tp", "fn", "fp", "tn")
_RATES = ("0.25", "0.5", "1", "2", "4", "8")
_DATA_SET = "CAMELYON16 test set"
_JAMA = "Ehteshami Bejnordi et al., JAMA 2017;318:2199-2210"


@dataclass(frozen=True)
class Published:
    """A result others published on the CAMELYON16 test set."""

    method: str
    froc: float | None
    slide_auc: float | None
    source: str


PUBLISHED = (
    Published("HMS & MIT II (GoogLeNet)", 0.807, 0.994, _JAMA),
    Published("HMS & MGH III (ResNet)", 0.760, 0.976, _JAMA),
    Published("CULab III (VGG16)", 0.703, 0.940, _JAMA),
    Published("Pathologist without time limit", None, 0.966, _JAMA),
    Published("PFA-ScanNet", 0.902, None, "Zhao et al., arXiv 1905.01040"),
)


@dataclass(frozen=True)
class Figure:
    """A number with its interval, or why there is none."""

    value: float | None
    interval: tuple[float, float] | None = None
    reason: str = ""


@dataclass(frozen=True)
class CohortLine:
    """One line of the cohort table."""

    split: str
    n_patients: int
    n_slides: int
    n_tumour: int
    n_normal: int
    n_unknown: int
    n_lesions: int
    n_positive: int
    n_negative: int
    n_ignored: int
    n_unreadable: int


def build_report(run: Path, *, models: Sequence[str] = ()) -> Path:
    """Write ``report.html`` of a run folder, from the files in it.

    Parameters
    ----------
    run : Path
        The run folder.
    models : sequence of str
        Which models to show, in this order; empty: all there are.

    Returns
    -------
    report : Path
        One HTML file that needs no other file and no network. Equal runs give equal bytes.

    Raises
    ------
    ReportError
        If no slide was tiled and no model has results, a named model is not there, or a file the
        report needs is broken.
    StageError
        If `run` is no run folder.
    """
    gathered = gather_run(run, models=models)
    if not gathered.models and not any(slide.tiled for slide in gathered.cohort):
        raise ReportError(
            f"{gathered.name}: nothing to report on, no slide is tiled and no model has results; "
            "start with: wsi-pipeline tile"
        )
    path = RunFolder(run).report
    write_text(path, render_report(gathered))
    return path


def render_report(run: RunFiles) -> str:
    """Render what was gathered as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wsi_pipeline.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=show_number, figure=show_figure)
    evaluated = [model for model in run.models if model.metrics is not None]
    return environment.get_template("report.html.j2").render(
        css=_read_asset("report.css"),
        js=_read_asset("report.js"),
        version=__version__,
        run=run,
        evaluated=evaluated,
        cohort=summarise_cohort(run.cohort),
        headline_names=_HEADLINES,
        headlines={model.name: read_headlines(model) for model in evaluated},
        thresholds={model.name: _read_thresholds(model) for model in evaluated},
        confusions={model.name: _read_confusion(model) for model in evaluated},
        patch_figures=_compare_figures(evaluated, "patch", _PATCH_FIGURES),
        slide_figures=_compare_figures(evaluated, "slide", _SLIDE_FIGURES),
        lecture=LECTURE_CONFUSION,
        slide_roc=curves.draw_slide_roc(evaluated),
        patch_roc=curves.draw_patch_roc(evaluated),
        precision_recall=curves.draw_precision_recall(evaluated),
        froc_curves={name: curves.draw_froc(run.models, name) for name in ("camelyon16", "patch")},
        froc_tables={name: _read_froc_table(run.models, name) for name in ("camelyon16", "patch")},
        rates=_RATES,
        histories={model.name: curves.draw_history(model) for model in run.models},
        slide_rows={model.name: _slide_rows(model, run.cohort) for model in run.models},
        pictures={model.name: _embed_overlays(model) for model in run.models},
        published=PUBLISHED,
        data_set=_DATA_SET,
        settings=json.dumps(run.settings, indent=2, sort_keys=True, ensure_ascii=False),
        versions=_read_versions(run.settings),
    )


def _read_asset(name: str) -> Markup:
    return Markup(files("wsi_pipeline.report").joinpath(name).read_text(encoding="utf-8"))


# --- numbers ---------------------------------------------------------------------------------


def show_number(value: float | int | None, digits: int = 3) -> Markup:
    """Show a number rounded, with its full value in the markup.

    Examples
    --------
    >>> show_number(0.98765), show_number(None)
    (Markup('<data value="0.98765">0.988</data>'), Markup('–'))
    """
    if value is None:
        return Markup("–")
    shown = f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"
    # Thin spaces between thousands: a comma is a decimal mark to half the world.
    shown = shown.replace(",", "\N{THIN SPACE}")
    return Markup('<data value="{}">{}</data>').format(repr(value), shown)


def show_figure(figure: Figure, name: str = "95 % CI") -> Markup:
    """Show a figure with its interval, called `name`, or the reason why it is undefined."""
    if figure.value is None:
        reason = figure.reason or "not computed"
        return Markup('<span class="undefined">undefined: {}</span>').format(reason)
    shown = show_number(figure.value)
    if figure.interval is None:
        return shown
    low, high = (show_number(float(end)) for end in figure.interval)
    return shown + Markup(' <span class="ci">{} {} to {}</span>').format(name, low, high)


def _read_figure(section: Mapping[str, Any], key: str, reasons: Mapping[str, str]) -> Figure:
    """Read one figure of ``metrics.json`` or ``froc.json``, with its interval or its reason."""
    value, interval = section.get(key), section.get(f"{key}_ci95")
    return Figure(
        value=value,
        interval=(interval[0], interval[1]) if interval else None,
        reason=reasons.get(key, ""),
    )


# --- what the sections show ------------------------------------------------------------------

_HEADLINES = (
    "ROC AUC of patches",
    "ROC AUC of slides",
    "FROC score, CAMELYON16",
    "FROC score, patches",
)
_LESION_NUMBERS = ("best_score", "x", "y", "area_um2", "major_axis_um")
_PATCH_FIGURES = {
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall (sensitivity)",
    "f1": "F1",
}
_SLIDE_FIGURES = {
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}


def read_headlines(model: ModelFiles) -> list[Figure]:
    """Give the figures a model is first asked for, in the order of `_HEADLINES`."""
    auc = [_read_metric(model, section, "roc_auc") for section in ("patch", "slide")]
    return auc + [_read_froc_score(model, name) for name in ("camelyon16", "patch")]


def _read_froc_score(model: ModelFiles, definition: str) -> Figure:
    result = model.froc.get(definition)
    if result is None:
        return Figure(None, reason="not evaluated by this definition")
    return _read_figure(result, "score", result.get("undefined") or {})


def summarise_cohort(cohort: Sequence[CohortSlide]) -> list[CohortLine]:
    """Count the cohort by split, and over all in the last line."""
    named = {"train": "training", "val": "validation", "test": "test", "": "no split"}
    groups = [(named[s], [c for c in cohort if c.split == s]) for s in (*SPLITS, "")]
    lines = [_count(name, slides) for name, slides in groups if slides]
    return [*lines, _count("all", list(cohort))]


def _count(name: str, slides: list[CohortSlide]) -> CohortLine:
    return CohortLine(
        split=name,
        n_patients=len({slide.patient for slide in slides}),
        n_slides=len(slides),
        n_tumour=sum(slide.label == 1 for slide in slides),
        n_normal=sum(slide.label == 0 for slide in slides),
        n_unknown=sum(slide.label is None for slide in slides),
        n_lesions=sum(slide.n_lesions for slide in slides),
        n_positive=sum(slide.n_positive for slide in slides),
        n_negative=sum(slide.n_negative for slide in slides),
        n_ignored=sum(slide.n_ignored for slide in slides),
        n_unreadable=sum(slide.n_unreadable for slide in slides),
    )


def _read_thresholds(model: ModelFiles) -> dict[str, float | None]:
    slide = _section(model, "slide")
    return {"patch": (model.metrics or {}).get("threshold"), "slide": slide.get("threshold")}


def _read_confusion(model: ModelFiles) -> Confusion | None:
    patch = _section(model, "patch")
    if any(not isinstance(patch.get(cell), int) for cell in _CELLS):
        return None
    return {cell: patch[cell] for cell in _CELLS}


def _compare_figures(
    models: Sequence[ModelFiles], section: str, names: Mapping[str, str]
) -> list[tuple[str, list[Figure]]]:
    """One line per figure that some model has: its name, and the figure of each model."""
    lines = []
    for key, name in names.items():
        if any(key in _section(model, section) for model in models):
            lines.append((name, [_read_metric(model, section, key) for model in models]))
    return lines


def _section(model: ModelFiles, section: str) -> Mapping[str, Any]:
    return (model.metrics or {}).get(section) or {}


def _read_metric(model: ModelFiles, section: str, key: str) -> Figure:
    undefined = (model.metrics or {}).get("undefined") or {}
    prefix = f"{section}."  # reasons stand at the top of metrics.json, by place
    reasons = {k.removeprefix(prefix): why for k, why in undefined.items() if k.startswith(prefix)}
    return _read_figure(_section(model, section), key, reasons)


def _read_froc_table(models: Sequence[ModelFiles], definition: str) -> list[dict[str, Any]]:
    """One line per model: what was counted, the sensitivities, the score, the lesions."""
    return [
        _read_froc_line(model, definition, model.froc[definition])
        for model in models
        if definition in model.froc
    ]


def _read_froc_line(model: ModelFiles, definition: str, result: dict[str, Any]) -> dict[str, Any]:
    lesions = model.lesions.get(definition, [])
    return {
        "model": model.name,
        "result": result,
        "at": [_read_sensitivity(result, rate) for rate in _RATES],
        "score": _read_froc_score(model, definition),
        "lesions": lesions,
        "lesion_columns": [(name, name in _LESION_NUMBERS) for name in (lesions or [{}])[0]],
    }


def _read_sensitivity(result: Mapping[str, Any], rate: str) -> Figure:
    intervals = (result.get("bootstrap") or {}).get("sensitivity_at_ci95") or {}
    interval = intervals.get(rate)
    undefined = result.get("undefined") or {}
    return Figure(
        value=(result.get("sensitivity_at") or {}).get(rate),
        interval=(interval[0], interval[1]) if interval else None,
        reason=str(undefined.get("sensitivity_at") or undefined.get("score") or ""),
    )


def _slide_rows(model: ModelFiles, cohort: Sequence[CohortSlide]) -> list[Row]:
    """The evaluated slides, and after them those that only have a heatmap."""
    split_by_id = {slide.slide_id: slide.split for slide in cohort}
    blank = dict.fromkeys(("label", "score", "predicted", *_CELLS), "")
    rows = [{**blank, **row} for row in model.slides]
    evaluated = {row.get("slide_id") for row in rows}
    rows += [{**blank, "slide_id": name} for name in model.overlays if name not in evaluated]
    return [{**row, "split": split_by_id.get(row.get("slide_id", ""), "")} for row in rows]


def _embed_overlays(model: ModelFiles) -> dict[str, str]:
    return {slide_id: embed_picture(path) for slide_id, path in model.overlays.items()}


def _read_versions(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Versions of all stages; where stages were run by different versions, all of them."""
    found: dict[str, list[str]] = {}
    for stage in (settings.get("stages") or {}).values():
        for package, version in (stage.get("versions") or {}).items():
            known = found.setdefault(package, [])
            if str(version) not in known:
                known.append(str(version))
    return [(package, ", ".join(versions)) for package, versions in sorted(found.items())]
