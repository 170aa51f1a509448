"""Compose the report: gather, compute what tables show, render one HTML file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tiling.files import write_text
from tiling.wording import format_number, pluralize
from wsi_pipeline.config.settings import Context, ReportConfig
from wsi_pipeline.contracts import DEFINITIONS, SPLITS, Rule
from wsi_pipeline.errors import ReportError
from wsi_pipeline.evaluation.metrics import titles_of
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.report import curves
from wsi_pipeline.report.figures import write_figures
from wsi_pipeline.report.gather import CohortSlide, ModelFiles, Row, RunFiles, gather_run
from wsi_pipeline.report.headline import (
    SPLIT_NAMES,
    ThresholdLine,
    count_calls,
    list_slide_thresholds,
    name_split,
)
from wsi_pipeline.report.labels import read_label_audit
from wsi_pipeline.report.page import (
    Figure,
    read_figure,
    read_score_figure,
    read_sensitivity_figure,
    render_page,
)
from wsi_pipeline.report.pictures import embed_picture
from wsi_pipeline.report.published import PUBLISHED
from wsi_pipeline.report.slide_rows import list_slides

Confusion = Mapping[str, int]

# The lecture's VGG16 on its 87 test slides (193,235 patches), at F(I) >= 0.75.
LECTURE_CONFUSION: Confusion = {"tp": 24_796, "fn": 4_340, "fp": 5_345, "tn": 158_754}

_CELLS = ("tp", "fn", "fp", "tn")
RATES = ("0.25", "0.5", "1", "2", "4", "8")
_CROP_PX = 256
_DATA_SET = "CAMELYON16 test set"


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


def build_report(
    run: Path,
    *,
    models: Sequence[str] = (),
    context: Sequence[Context] = (),
    n_pictures: int = ReportConfig.slide_pictures,
    figures: list[Path] | None = None,
) -> Path:
    """Write ``report.html`` and ``figures/`` of a run folder, from the files in it.

    Parameters
    ----------
    run : Path
        The run folder.
    models : sequence of str
        Which models to show, in this order; empty: all there are.
    context : sequence of {"lecture", "camelyon16"}
        Others' results to show for comparison.
    n_pictures : int
        Slides of each model that are shown with their picture: the worst ones
        (`wsi_pipeline.report.slide_rows`). The other pictures are linked.
    figures : list of Path, optional
        Gets the files written under ``figures/``.

    Returns
    -------
    report : Path
        One HTML file that needs no network, and no other file but the pictures that it links.
        Equal runs give equal bytes.

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
    written = [] if figures is None else figures
    for model in gathered.models:
        written += write_figures(RunFolder(run).figures(model.name), model)
    write_text(path, render_report(gathered, context=context, n_pictures=n_pictures))
    return path


def render_report(
    run: RunFiles, *, context: Sequence[Context] = (), n_pictures: int = ReportConfig.slide_pictures
) -> str:
    """Render what was gathered as HTML, with others' results where `context` names any.

    At most `n_pictures` slides of each model are shown with their picture.
    """
    evaluated = [model for model in run.models if model.metrics is not None]
    thresholds = list_slide_thresholds(evaluated, run.settings)
    values = {
        "run": run,
        "evaluated": evaluated,
        "scored": [] if evaluated else [model for model in run.models if model.highest],
        "cohort": summarise_cohort(run.cohort),
        "labels": read_label_audit(run.label_audit, run.audited),
        "headline_names": HEADLINES,
        "headlines": {model.name: read_headlines(model) for model in evaluated},
        "evaluated_on": {m.name: _name_evaluated(m, run.cohort) for m in evaluated},
        "calls": {model.name: count_calls(model.slides) for model in evaluated},
        "thresholds": thresholds,
        "slide_threshold": {m.name: _find_slide_line(m, thresholds) for m in evaluated},
        "patch_threshold": {m.name: _read_thresholds(m)["patch"] for m in evaluated},
        "next_step": _find_next_step(run),
        "confusions": {model.name: _read_confusion(model) for model in evaluated},
        "patch_figures": compare_figures(evaluated, "patch", titles_of("patch")),
        "slide_figures": compare_figures(evaluated, "slide", titles_of("slide")),
        "patient_figures": compare_figures(evaluated, "patient", titles_of("patient")),
        "context": context,
        "kind_figures": compare_kinds(evaluated) if "camelyon16" in context else [],
        "calibration_figures": compare_figures(evaluated, "calibration", CALIBRATION_FIGURES),
        "localisation_figures": compare_figures(evaluated, "localisation", LOCALISATION_FIGURES),
        "lecture": LECTURE_CONFUSION,
        "slide_roc": curves.chart_slide_roc(evaluated),
        "patch_roc": curves.chart_patch_roc(evaluated),
        "reliability": curves.chart_reliability(evaluated),
        "sweeps": [
            (model.name, chart) for model in evaluated if (chart := curves.chart_sweep(model))
        ],
        "kind_names": METASTASIS_KINDS,
        "precision_recall": curves.chart_precision_recall(evaluated),
        "froc_curves": {name: curves.chart_froc(run.models, name) for name in DEFINITIONS},
        "froc_tables": {name: read_froc_table(run.models, name) for name in DEFINITIONS},
        "rates": RATES,
        "epoch_seconds": {m.name: curves.epoch_seconds(m.history) for m in run.models},
        "histories": {model.name: curves.chart_history(model) for model in run.models},
        "slide_rows": {
            model.name: list_slides(
                model,
                run.cohort,
                _read_thresholds(model),
                n_pictures=n_pictures,
                folder=run.folder,
            )
            for model in run.models
        },
        "n_pictures": n_pictures,
        "crops": {model.name: _embed_crops(model) for model in run.models},
        "patch_l0": {slide.slide_id: slide.patch_l0 for slide in run.cohort},
        "explanations": {
            model.name: embed_picture(model.explanations, longest_px=SHEET_PX)
            for model in run.models
            if model.explanations is not None
        },
        "explained": {model.name: model.explained for model in run.models},
        "explanations_caption": EXPLANATIONS_CAPTION,
        "methods_on_masks": {model.name: model.methods_on_masks for model in run.models},
        "published": PUBLISHED,
        "own_results": [
            (
                model.name,
                _read_froc_score(model, "camelyon16"),
                _read_metric(model, "slide", "roc_auc"),
            )
            for model in evaluated
        ],
        "data_set": _DATA_SET,
        "settings": json.dumps(run.settings, indent=2, sort_keys=True, ensure_ascii=False),
        "versions": read_versions(run.settings),
    }
    return render_page("report.html.j2", values)


# --- what the sections show ------------------------------------------------------------------

FROC_TITLES = {"camelyon16": "FROC score, CAMELYON16", "patch": "FROC score, patches"}
HEADLINES = ("ROC AUC of patches", "ROC AUC of slides", *FROC_TITLES.values())
CALIBRATION_FIGURES = {
    "ece": "expected calibration error",
    "ece_calibrated": "the same, with temperature",
    "brier": "Brier score",
    "brier_calibrated": "the same, with temperature",
    "nll": "negative log-likelihood, nats",
    "nll_calibrated": "the same, with temperature",
    "temperature": "temperature",
}
LOCALISATION_FIGURES = {
    "average_exact_match": "average exact match",
    "average_recall": "average recall",
    "average_roc_auc": "average ROC AUC",
}
EXPLANATIONS_CAPTION = (
    "Where the model looks, by each method that was run: best hits, then worst errors, unless "
    "others were named. White is the highest value of each map."
)
SHEET_PX = 2200  # longer side of the sheet of explanations
METASTASIS_KINDS = {
    "macro": "macrometastases",
    "micro": "micrometastases",
    "itc": "isolated tumour cells",
}


def read_headlines(model: ModelFiles) -> list[Figure]:
    """Return the figures a model is first asked for, in the order of `HEADLINES`."""
    auc = [_read_metric(model, section, "roc_auc") for section in ("patch", "slide")]
    return auc + [_read_froc_score(model, name) for name in DEFINITIONS]


def _read_froc_score(model: ModelFiles, definition: str) -> Figure:
    result = model.froc.get(definition)
    if result is None:
        return Figure(None, reason="not evaluated by this definition")
    return read_score_figure(result)


def summarise_cohort(cohort: Sequence[CohortSlide]) -> list[CohortLine]:
    """Count the cohort by split, and over all in the last line."""
    groups = [(SPLIT_NAMES[s], [c for c in cohort if c.split == s]) for s in (*SPLITS, "")]
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


def _name_evaluated(model: ModelFiles, cohort: Sequence[CohortSlide]) -> str:
    """Name the split that a model was evaluated on, with a space behind; empty: several."""
    splits = {slide.slide_id: slide.split for slide in cohort}
    return name_split(splits.get(row.get("slide_id", ""), "") for row in model.slides)


def _find_slide_line(
    model: ModelFiles, thresholds: Sequence[ThresholdLine]
) -> ThresholdLine | None:
    value = _read_thresholds(model)["slide"]
    lines = [line for line in thresholds if line.model == model.name and line.value == value]
    return lines[0] if value is not None and lines else None


def _find_next_step(run: RunFiles) -> tuple[str, str] | None:
    """Return what the run lacks and the command that makes it; None where nothing can be added.

    Slides without a label can be neither trained on nor evaluated.
    """
    labelled = {slide.slide_id for slide in run.cohort if slide.label is not None}
    if not run.models:
        command = "train" if labelled else "predict"
        return "No model has scored these slides", f"{command} {run.name}"
    if any(model.metrics for model in run.models):
        return None
    scored = {name for model in run.models for name in model.highest | model.overlays}
    found = [slide for slide in run.cohort if slide.slide_id in scored & labelled]
    if any(slide.split in ("", "test") for slide in found):
        return "The scores are not yet compared with the labels", f"evaluate {run.name}"
    return None


def _read_thresholds(model: ModelFiles) -> dict[str, float | None]:
    slide = find_section(model, "slide")
    return {"patch": (model.metrics or {}).get("threshold"), "slide": slide.get("threshold")}


def _read_confusion(model: ModelFiles) -> Confusion | None:
    patch = find_section(model, "patch")
    if any(not isinstance(patch.get(cell), int) for cell in _CELLS):
        return None
    return {cell: patch[cell] for cell in _CELLS}


def compare_figures(
    models: Sequence[ModelFiles], section: str, names: Mapping[str, str]
) -> list[tuple[str, list[Figure]]]:
    """Return one line per figure that some model has: its name, and the figure of each model."""
    lines = []
    for key, name in names.items():
        if any(key in find_section(model, section) for model in models):
            lines.append((name, [_read_metric(model, section, key) for model in models]))
    return lines


def compare_kinds(models: Sequence[ModelFiles]) -> list[tuple[str, list[Figure]]]:
    """Return the lines about slides with metastases of each kind, that kind against the normal."""
    lines = []
    for kind, name in METASTASIS_KINDS.items():
        if any(find_section(model, f"metastasis.{kind}").get("n") for model in models):
            titles = {key: f"{name}: {title}" for key, title in titles_of("metastasis").items()}
            lines += compare_figures(models, f"metastasis.{kind}", titles)
    return lines


def find_section(model: ModelFiles, section: str) -> Mapping[str, Any]:
    """Find a section of ``metrics.json`` by its path; empty where there is none."""
    found: Any = model.metrics or {}
    for name in section.split("."):
        found = found.get(name) or {}
    known: Mapping[str, Any] = found
    return known


def _read_metric(model: ModelFiles, section: str, key: str) -> Figure:
    undefined = (model.metrics or {}).get("undefined") or {}
    prefix = f"{section}."  # reasons are at the top level of metrics.json, by place
    reasons = {k.removeprefix(prefix): why for k, why in undefined.items() if k.startswith(prefix)}
    return read_figure(find_section(model, section), key, reasons)


def read_froc_table(models: Sequence[ModelFiles], definition: str) -> list[dict[str, Any]]:
    """Return one line per model: what was counted, the sensitivities, the score, the lesions."""
    return [
        _read_froc_line(model, definition, model.froc[definition])
        for model in models
        if definition in model.froc
    ]


def _read_froc_line(model: ModelFiles, definition: str, result: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": model.name,
        "result": result,
        "at": {rate: read_sensitivity_figure(result, rate) for rate in RATES},
        "score": _read_froc_score(model, definition),
        "lesions": model.lesions.get(definition, []),
        "found": _count_found(model, definition),
    }


def _count_found(model: ModelFiles, definition: str) -> str:
    """Summarise a list of lesions: those with a detection, or found at the patch threshold."""
    lesions = model.lesions.get(definition, [])
    of_all = pluralize(len(lesions), "lesion")
    if definition == "camelyon16":
        found = sum(lesion.get("status") == "hit" for lesion in lesions)
        return f"{found} of {of_all} with a detection"
    threshold = _read_thresholds(model)["patch"]
    if threshold is None:
        return of_all
    best = np.array([lesion.get("best_score") or "nan" for lesion in lesions], np.float64)
    found = int(np.count_nonzero(Rule(threshold).decide(best)))
    return f"{found} of {of_all} found at the patch threshold, {format_number(threshold, 2)}"


def _embed_crops(model: ModelFiles) -> list[tuple[str, Row]]:
    """Return the worst errors of a model: picture (or none), and the row of ``errors.csv``."""
    return [
        (embed_picture(crop.picture, longest_px=_CROP_PX) if crop.picture else "", crop.row)
        for crop in model.errors
    ]


def read_versions(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Versions of all stages; where stages were run by different versions, all of them."""
    found: dict[str, list[str]] = {}
    for stage in (settings.get("stages") or {}).values():
        for package, version in (stage.get("versions") or {}).items():
            known = found.setdefault(package, [])
            if str(version) not in known:
                known.append(str(version))
    return [(package, ", ".join(versions)) for package, versions in sorted(found.items())]
