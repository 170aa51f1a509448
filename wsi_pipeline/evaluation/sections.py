"""The parts of ``metrics.json`` besides patches, slides and FROC, and the tables behind them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.wording import name_some, pluralize
from wsi_pipeline.contracts import SPLITS
from wsi_pipeline.csv_files import write_csv
from wsi_pipeline.evaluation.bootstrap import Resamples
from wsi_pipeline.evaluation.figures import (
    Figures,
    add_decisions,
    add_ranking,
    add_ranking_intervals,
    add_threshold_figures,
)
from wsi_pipeline.evaluation.inputs import EvaluationSlide
from wsi_pipeline.evaluation.localisation import (
    THRESHOLD,
    ImageLocalisation,
    average_localisation,
)
from wsi_pipeline.evaluation.metastases import KINDS, SOURCE, largest_metastasis
from wsi_pipeline.evaluation.metrics import PATIENT, SLIDE, ranking_figures
from wsi_pipeline.evaluation.slide import SlideThreshold
from wsi_pipeline.evaluation.tables import Cell
from wsi_pipeline.training.calibration import (
    N_BINS,
    apply_temperature,
    calibration_figures,
    fit_temperature,
    reliability_curve,
)

CALIBRATION_COLUMNS = (
    "bin_low", "bin_high", "n", "mean_score", "positive_share",
    "calibrated_n", "calibrated_mean_score", "calibrated_positive_share",
)  # fmt: skip
COHORT_COLUMNS = (
    "slide_id", "patient", "label", "in_froc", "n_itc", "largest_lesion_um", "metastasis",
)  # fmt: skip
LOCALISATION_COLUMNS = (
    "n_pixels", "n_tumour", "n_unscored", "exact_match", "recall", "roc_auc",
)  # fmt: skip
_NAMED = 5  # ids in a note
PATIENT_COLUMNS = ("patient", "label", "score", "predicted", "slides")

Labelled = tuple[NDArray[np.int8], NDArray[np.float64]]


# ------------------------------------------------------------ calibration


def calibration_section(test: Labelled, val: Labelled, out: Path) -> Figures:
    """Judge the test patches' scores as probabilities, before and after a temperature.

    Parameters
    ----------
    test, val : (labels, scores) of the patches that count
        The temperature is fitted on `val`, frozen, and applied to `test`.
    out : Path
        Gets ``calibration.csv``.
    """
    labels, scores = test
    temperature = fit_temperature(*val)
    section = Figures(
        {
            "n": int(labels.size),
            "n_val": int(val[0].size),
            "n_bins": N_BINS,
            "temperature": temperature.value,
        }
    )
    if temperature.value is None:
        section.undefined["temperature"] = temperature.reason
    _add_calibration(section, labels, scores, suffix="", reason="")
    scaled = None if temperature.value is None else apply_temperature(scores, temperature.value)
    _add_calibration(section, labels, scaled, suffix="_calibrated", reason=temperature.reason)
    edges = np.linspace(0, 1, N_BINS + 1).tolist()
    before = _reliability_cells(labels, scores)
    after = _reliability_cells(labels, scaled)
    write_csv(
        out / "calibration.csv",
        CALIBRATION_COLUMNS,
        [[*ends, *b, *a] for *ends, b, a in zip(edges[:-1], edges[1:], before, after, strict=True)],
    )
    return section


def _add_calibration(
    section: Figures,
    labels: NDArray[np.int8],
    scores: NDArray[np.float64] | None,
    *,
    suffix: str,
    reason: str,
) -> None:
    figures = None if scores is None else calibration_figures(labels, scores)
    for name in ("ece", "brier", "nll"):
        section.values[f"{name}{suffix}"] = getattr(figures, name) if figures else None
        if figures is None:
            section.undefined[f"{name}{suffix}"] = reason or "no labelled patches"


def _reliability_cells(
    labels: NDArray[np.int8], scores: NDArray[np.float64] | None
) -> list[list[Cell]]:
    if scores is None:
        return [[None, None, None]] * N_BINS
    curve = reliability_curve(labels, scores)
    columns = (curve.count.tolist(), curve.mean_score.tolist(), curve.positive_share.tolist())
    return [
        [n, mean if n else None, share if n else None]
        for n, mean, share in zip(*columns, strict=True)
    ]


# ------------------------------------------------------------ localisation


def localisation_section(
    test: Sequence[EvaluationSlide],
    out: Path,
    elsewhere: Mapping[str, Sequence[str]],
    notes: list[str],
) -> Figures:
    """Average how heatmaps lie on outlines; writes ``localisation.csv``, one row for each slide.

    Outlined slides of other splits (`elsewhere`, by split) are counted, and named in `notes`.
    """
    known = {s.slide_id: s.localisation for s in test if s.localisation is not None}
    reasons = {
        "average_exact_match": "no test slide has a heatmap and an outline",
        "average_recall": "no outlined slide has a tumour pixel",
        "average_roc_auc": "no outlined slide has both tumour and other pixels",
    }
    write_localisation(out / "localisation.csv", "slide_id", known)
    notes += describe_elsewhere("outlined slide", elsewhere)
    skipped = len(test) - len(known)
    return average_section(known, skipped=skipped, reasons=reasons, elsewhere=elsewhere)


def describe_elsewhere(what: str, elsewhere: Mapping[str, Sequence[str]]) -> list[str]:
    """Name what could be compared with maps, in splits that are not evaluated."""
    notes = []
    for split, ids in elsewhere.items():
        verb = "is" if len(ids) == 1 else "are"
        asked = split if split in SPLITS else "all"
        notes.append(
            f"{pluralize(len(ids), what)} {verb} in the split {split}, which is not evaluated: "
            f"{name_some(ids, _NAMED)}; set evaluate.split={asked} to compare their maps"
        )
    return notes


def average_section(
    known: Mapping[str, ImageLocalisation],
    *,
    skipped: int,
    reasons: Mapping[str, str],
    elsewhere: Mapping[str, Sequence[str]],
) -> Figures:
    """Average figures of heatmaps against masks; `reasons` of those that nothing defines."""
    mean = average_localisation(known.values())
    section = Figures(
        {
            "n": mean.n,
            "skipped": skipped,
            "threshold": THRESHOLD,
            "average_exact_match": mean.exact_match,
            "average_recall": mean.recall,
            "recall_n": mean.n - mean.recall_skipped,
            "recall_skipped": mean.recall_skipped,
            "average_roc_auc": mean.roc_auc,
            "roc_auc_n": mean.n - mean.roc_auc_skipped,
            "roc_auc_skipped": mean.roc_auc_skipped,
            "elsewhere": {split: len(ids) for split, ids in elsewhere.items()},
        }
    )
    section.undefined |= {k: r for k, r in reasons.items() if section.values[k] is None}
    return section


def write_localisation(path: Path, id_name: str, known: Mapping[str, ImageLocalisation]) -> None:
    """Write each heatmap's figures, one row by its id."""
    write_csv(
        path,
        (id_name, *LOCALISATION_COLUMNS),
        [
            (i, f.n_pixels, f.n_tumour, f.n_unscored, f.exact_match, f.recall, f.roc_auc)
            for i, f in known.items()
        ],
    )


# ------------------------------------------------------------ the cohort, macro and micro


def write_cohort(
    out: Path, test: Sequence[EvaluationSlide], in_froc: Mapping[str, int]
) -> dict[str, str]:
    """Write ``cohort.csv``: what is known of each test slide besides its scores.

    Parameters
    ----------
    in_froc : slide_id -> number of ITC
        The slides that count in the FROC by lesions.

    Returns
    -------
    kinds : slide_id -> macro, micro or itc
        Of slides with an annotated lesion.
    """
    rows: list[list[Cell]] = []
    kinds: dict[str, str] = {}
    for slide in test:
        largest = largest_metastasis(slide.annotation, mpp=slide.slide_mpp)
        if largest:
            kinds[slide.slide_id] = largest.kind
        rows.append(
            [
                slide.slide_id,
                slide.patient,
                slide.truth,
                int(slide.slide_id in in_froc),
                in_froc.get(slide.slide_id),
                largest.diameter_um if largest else None,
                largest.kind if largest else None,
            ]
        )
    write_csv(out / "cohort.csv", COHORT_COLUMNS, rows)
    return kinds


def metastasis_section(
    test: Sequence[EvaluationSlide],
    slide_scores: Mapping[str, float | None],
    kinds: Mapping[str, str],
    threshold: SlideThreshold | None,
    resamples: Resamples | None,
) -> Figures:
    """Judge slides with macrometastases, micrometastases and ITC apart, each against the normal.

    Parameters
    ----------
    resamples : Resamples, optional
        Of all test slides; None: no intervals.
    """
    section = Figures({"source": SOURCE})
    scored = np.array([slide_scores[s.slide_id] is not None for s in test])
    truth = np.array([s.truth for s in test])
    scores = np.array([slide_scores[s.slide_id] or 0.0 for s in test])
    kind_of = np.array([kinds.get(s.slide_id, "") for s in test])
    section.values["n_normal"] = int((scored & (truth == 0)).sum())
    section.values["n_unknown"] = int((scored & (truth == 1) & (kind_of == "")).sum())
    for kind in KINDS:
        of_kind = scored & (truth == 1) & (kind_of == kind)
        chosen = of_kind | (scored & (truth == 0))
        part = Figures({"n": int(of_kind.sum())})
        labels = truth[chosen].astype(np.int64)
        both = f"{kind} and normal slides"
        level = replace(SLIDE, section="metastasis", units=both, positive=f"{kind} slide")
        values, reasons = ranking_figures(level, labels, scores[chosen])
        if not of_kind.any():
            reasons = dict.fromkeys(reasons, f"no {kind} slide")
        part.add(values, reasons)
        drawn = None if resamples is None else resamples.take(chosen)
        if drawn is not None:
            needed = {f"{kind} slides": labels == 1, "normal slides": labels == 0}
            add_ranking_intervals(part, level, labels, scores[chosen], drawn, needed)
        decided = (labels, scores[chosen], threshold, drawn)
        add_decisions(part, level, *decided, no_rule="there is no slide threshold")
        section.values[kind] = part.values
        section.undefined |= {f"{kind}.{name}": why for name, why in part.undefined.items()}
    return section


# ------------------------------------------------------------ patients


@dataclass(frozen=True)
class _Patient:
    name: str
    label: int
    score: float | None  # the largest of the slides'
    slides: list[int]  # places among the test slides


def patient_section(
    test: Sequence[EvaluationSlide],
    slide_scores: Mapping[str, float | None],
    threshold: SlideThreshold | None,
    resamples: Resamples | None,
    out: Path,
) -> Figures:
    """Judge patients by their most suspicious slide; writes ``patients.csv``.

    A patient has tumour iff a slide has, and is predicted so iff a slide is: the slides' threshold.

    Parameters
    ----------
    resamples : Resamples, optional
        Of the test slides, drawn by patient: all slides of one have the same weight.
    """
    patients = _group(test, slide_scores)
    write_csv(
        out / "patients.csv",
        PATIENT_COLUMNS,
        [
            (
                p.name,
                p.label,
                p.score,
                None if p.score is None or threshold is None else int(threshold.decide(p.score)),
                ";".join(test[i].slide_id for i in p.slides),
            )
            for p in patients
        ],
    )
    known = [p for p in patients if p.score is not None]
    labels = np.array([p.label for p in known], dtype=np.int64)
    scores = np.array([p.score for p in known], dtype=np.float64)
    drawn = None if resamples is None else resamples.take([p.slides[0] for p in known])
    section = Figures(
        {
            "aggregator": "max over the patient's slides",
            "n": len(known),
            "n_positive": int((labels == 1).sum()),
            "n_unscored": len(patients) - len(known),
        }
    )
    add_ranking(section, PATIENT, labels, scores, drawn)
    add_threshold_figures(section, PATIENT, labels, scores, threshold, drawn)
    return section


def _group(
    test: Sequence[EvaluationSlide], slide_scores: Mapping[str, float | None]
) -> list[_Patient]:
    places: dict[str, list[int]] = {}
    for i, slide in enumerate(test):
        places.setdefault(slide.patient, []).append(i)
    patients = []
    for name, slides in places.items():
        scores = [slide_scores[test[i].slide_id] for i in slides]
        patients.append(
            _Patient(
                name=name,
                label=max(int(test[i].truth == 1) for i in slides),
                score=max((s for s in scores if s is not None), default=None),
                slides=slides,
            )
        )
    return patients


def flatten_undefined(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Name each undefined figure by its place in ``metrics.json``.

    Examples
    --------
    >>> flatten_undefined({"slide": {"roc_auc": "one class"}})
    {'slide.roc_auc': 'one class'}
    """
    return {
        f"{section}.{name}": reason
        for section, reasons in sections.items()
        for name, reason in reasons.items()
    }
