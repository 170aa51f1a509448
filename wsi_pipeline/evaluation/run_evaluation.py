"""What the stage ``evaluate`` does for one model: all slides' scores and reference -> figures.

Only the test split is scored (every labelled slide, where there are no splits); the validation
split does nothing but choose the slide threshold. Every number written can be computed again from
the tables beside it.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import Annotation
from tiling.files import write_json
from wsi_pipeline.contracts import Detections, FrocCurve, Scores
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.bootstrap import (
    Interval,
    draw_weights,
    percentile_interval,
    weighted_average_precision,
    weighted_ratio,
    weighted_roc_auc,
)
from wsi_pipeline.evaluation.delong import delong_auc
from wsi_pipeline.evaluation.detections import describe_outside, find_outside
from wsi_pipeline.evaluation.froc import (
    Definition,
    SlideHits,
    build_froc,
    collect_events,
    froc_to_json,
    match_detections,
    match_patches,
)
from wsi_pipeline.evaluation.froc_results import (
    LesionRow,
    add_interval,
    describe_found,
    lesion_rows,
    named_lesion_rows,
    write_curve,
    write_lesions,
)
from wsi_pipeline.evaluation.lesions import label_polygons, no_lesions
from wsi_pipeline.evaluation.patch import (
    Confusion,
    RankingCurves,
    confusion_figures,
    count_confusion,
    patch_auc_interval,
    ranking_curves,
    ranking_figures,
)
from wsi_pipeline.evaluation.plots import (
    draw_confusion,
    draw_froc,
    draw_precision_recall,
    draw_roc,
)
from wsi_pipeline.evaluation.slide import SlideThreshold, aggregate_scores, freeze_threshold
from wsi_pipeline.evaluation.tables import Cell, write_rows
from wsi_pipeline.settings import EvaluateConfig

log = logging.getLogger(__name__)

SLIDE_COLUMNS = ("slide_id", "label", "score", "predicted", "tp", "fp", "fn", "tn")
PATCH_COLUMNS = ("slide_id", "x", "y", "score", "label", "lesions")
DEFINITIONS: tuple[Definition, ...] = ("camelyon16", "patch")


@dataclass(frozen=True)
class EvaluationSlide:
    """Everything that is known of one slide."""

    slide_id: str
    patient: str
    split: str | None  # train, val, test or None
    label: int | None  # 1 tumour, 0 normal, None: by the annotation
    scores: Scores
    patch_labels: NDArray[np.int8]  # (N,) 1, 0, -1
    lesion_pairs: NDArray[np.int64]  # (M, 2) patch, index into lesion_ids
    lesion_ids: Sequence[str]  # of all lesions, with a patch or without
    annotation: Annotation | None
    slide_mpp: tuple[float, float]  # (x, y) µm per level-0 px
    slide_size: tuple[int, int]  # (width, height), level-0 px
    detections: Detections

    @property
    def truth(self) -> int | None:
        """Slide label, told or by the annotation; None where there is neither."""
        if self.label is not None or self.annotation is None:
            return self.label
        return int(bool(self.annotation.lesions))


@dataclass
class _Figures:
    """One section of ``metrics.json`` as it grows."""

    values: dict[str, Any]
    undefined: dict[str, str] = field(default_factory=dict)

    def add(self, figures: dict[str, float | None], undefined: dict[str, str]) -> None:
        self.values |= figures
        self.undefined |= undefined

    def add_interval(self, name: str, interval: Interval | None) -> None:
        """Add ``<name>_ci95``, with the reason where there is none."""
        ends = [interval.low, interval.high] if interval else None
        self.values[f"{name}_ci95"] = ends
        if ends is None:
            reason = self.undefined.get(name, "undefined in every replicate")
            self.undefined[f"{name}_ci95"] = reason


def evaluate_run(
    slides: Sequence[EvaluationSlide], *, settings: EvaluateConfig, out: Path, model: str
) -> dict[str, Any]:
    """Compute and write one model's figures.

    Parameters
    ----------
    slides : sequence of EvaluationSlide
        Of the test and validation splits, or all where there are no splits. Those of the training
        split and those without any reference are left out.
    settings : EvaluateConfig
    out : Path
        Gets ``metrics.json`` (last), ``slides.csv``, ``validation.csv``, ``patches.csv``,
        ``confusion.csv``, ``roc.csv``, ``pr.csv``; ``froc.json`` and ``lesions.csv`` of the
        definition in the settings, ``froc_<definition>.json``, ``.csv`` and
        ``lesions_<definition>.csv`` of both; ``roc.png``, ``pr.png``, ``froc.png``,
        ``confusion.png``.
    model : str

    Returns
    -------
    metrics : dict
        The content of ``metrics.json``.

    Raises
    ------
    EvaluationError
        If there is nothing to evaluate, or scores and reference contradict each other.
    """
    test, val = _choose_slides(slides)
    notes = _choice_notes(slides, test)
    slide_scores = {s.slide_id: _slide_score(s, settings) for s in (*test, *val)}
    threshold = _freeze(val, slide_scores, settings)
    weights = _draw(test, settings)
    patch, patch_curves = _patch_section(test, settings, weights)
    slide, slide_curves = _slide_section(test, slide_scores, threshold, settings, weights)
    frocs = {name: _froc(test, name, settings, notes) for name in DEFINITIONS}
    metrics = {
        "model": model,
        "threshold": settings.threshold,
        "patch": patch.values,
        "slide": slide.values,
        "froc": froc_to_json(frocs[settings.froc_definition][0]),
        **{f"froc_{name}": froc_to_json(curve) for name, (curve, _) in frocs.items()},
        "undefined": _undefined(
            patch,
            slide,
            {
                "froc": frocs[settings.froc_definition][0],
                **{f"froc_{name}": curve for name, (curve, _) in frocs.items()},
            },
        ),
        "notes": notes,
    }
    _write_tables(out, test, val, slide_scores, threshold, settings)
    curves = [
        (name, curve, section.values)
        for name, curve, section in (
            ("patches", patch_curves, patch),
            ("slides", slide_curves, slide),
        )
        if curve is not None
    ]
    _write_ranking(out, curves)
    _write_frocs(out, frocs, settings.froc_definition)
    draw_confusion(out / "confusion.png", _confusion(test, settings), threshold=settings.threshold)
    write_json(out / "metrics.json", metrics)
    return metrics


# ------------------------------------------------------------ which slides


def _choose_slides(
    slides: Sequence[EvaluationSlide],
) -> tuple[list[EvaluationSlide], list[EvaluationSlide]]:
    """Choose test and validation slides, among those with a reference."""
    for slide in slides:
        _check_slide(slide)
    known = [slide for slide in slides if slide.truth is not None]
    if any(slide.split for slide in slides):
        test = [slide for slide in known if slide.split == "test"]
        val = [slide for slide in known if slide.split == "val"]
    else:
        test, val = known, []
    if not test:
        raise EvaluationError(
            f"none of {len(slides)} slides is a test slide with a label or an annotation; "
            "give slides the split test in the manifest, or none of them a split"
        )
    return test, val


def _check_slide(slide: EvaluationSlide) -> None:
    n = len(slide.scores.scores)
    if len(slide.patch_labels) != n:
        raise EvaluationError(
            f"slide {slide.slide_id}: {n} scores for {len(slide.patch_labels)} patches; "
            "predict it again"
        )
    has_lesion = bool(slide.lesion_ids) or bool(slide.annotation and slide.annotation.lesions)
    if slide.label == 0 and has_lesion:
        raise EvaluationError(
            f"slide {slide.slide_id} has label 0 but its annotation holds a lesion; "
            "one of the two is wrong: mend the manifest"
        )


def _choice_notes(slides: Sequence[EvaluationSlide], test: Sequence[EvaluationSlide]) -> list[str]:
    notes = []
    unknown = [s.slide_id for s in slides if s.truth is None and s.split in ("test", None)]
    if unknown:
        notes.append(
            f"{len(unknown)} slides with neither label nor annotation left out: "
            + ", ".join(unknown)
        )
    if not any(slide.split for slide in slides):
        notes.append("no slide has a split: all of them are evaluated, none chooses a threshold")
    n_unreadable = sum(int(np.isnan(s.scores.scores).sum()) for s in test)
    if n_unreadable:
        notes.append(f"{n_unreadable} unreadable patches have no score and count nowhere")
    return notes


def _draw(test: Sequence[EvaluationSlide], settings: EvaluateConfig) -> NDArray[np.int64] | None:
    if not settings.bootstrap:
        return None
    return draw_weights(
        len(test),
        n_replicates=settings.bootstrap,
        seed=settings.seed,
        patients=[slide.patient for slide in test],
        strata=[slide.truth == 1 for slide in test] if settings.stratified else None,
    )


# ------------------------------------------------------------ patches


def _labelled(
    slide: EvaluationSlide,
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Labels and scores of the patches that count."""
    scores = slide.scores.scores.astype(np.float64)
    counts = ~np.isnan(scores) & (slide.patch_labels >= 0)
    return slide.patch_labels[counts], scores[counts]


def _slide_confusion(slide: EvaluationSlide, settings: EvaluateConfig) -> Confusion:
    return count_confusion(slide.patch_labels, slide.scores.scores, threshold=settings.threshold)


def _confusion(test: Sequence[EvaluationSlide], settings: EvaluateConfig) -> Confusion:
    return sum((_slide_confusion(s, settings) for s in test), start=Confusion(0, 0, 0, 0))


def _patch_section(
    test: Sequence[EvaluationSlide], settings: EvaluateConfig, weights: NDArray[np.int64] | None
) -> tuple[_Figures, RankingCurves | None]:
    counted = [_labelled(slide) for slide in test]
    labels = np.concatenate([label for label, _ in counted])
    scores = np.concatenate([score for _, score in counted])
    by_slide = [_slide_confusion(slide, settings) for slide in test]
    confusion = _confusion(test, settings)
    section = _Figures(
        {
            "n": int(labels.size),
            "n_ignored": sum(int((s.patch_labels < 0).sum()) for s in test),
            "n_unreadable": sum(int(np.isnan(s.scores.scores).sum()) for s in test),
            "tp": confusion.tp,
            "fp": confusion.fp,
            "fn": confusion.fn,
            "tn": confusion.tn,
        }
    )
    section.add(*confusion_figures(confusion))
    section.add(*ranking_figures(labels, scores, what="patches"))
    if weights is not None:
        tp, fp, fn, tn = (
            np.array([getattr(c, name) for c in by_slide]) for name in ("tp", "fp", "fn", "tn")
        )
        for name, part, whole in (
            ("accuracy", tp + tn, tp + fp + fn + tn),
            ("precision", tp, tp + fp),
            ("recall", tp, tp + fn),
            ("f1", 2 * tp, 2 * tp + fp + fn),
        ):
            section.add_interval(name, percentile_interval(weighted_ratio(part, whole, weights)))
        interval = patch_auc_interval([a for a, _ in counted], [b for _, b in counted], weights)
        section.add_interval("roc_auc", interval)
    return section, ranking_curves(labels, scores)


# ------------------------------------------------------------ slides


def _slide_score(slide: EvaluationSlide, settings: EvaluateConfig) -> float | None:
    return aggregate_scores(
        slide.scores.scores,
        slide.scores.coords,
        how=settings.aggregator,
        top_k=settings.top_k,
    )


def _freeze(
    val: Sequence[EvaluationSlide], scores: dict[str, float | None], settings: EvaluateConfig
) -> SlideThreshold | None:
    known = [(s.truth, scores[s.slide_id]) for s in val if scores[s.slide_id] is not None]
    return freeze_threshold(
        [cast(int, label) for label, _ in known],
        [cast(float, score) for _, score in known],
        fixed=settings.slide_threshold,
        # Only these aggregators give something on the scale of a patch's score.
        fallback=settings.threshold if settings.aggregator != "span" else None,
    )


def _slide_section(
    test: Sequence[EvaluationSlide],
    slide_scores: dict[str, float | None],
    threshold: SlideThreshold | None,
    settings: EvaluateConfig,
    weights: NDArray[np.int64] | None,
) -> tuple[_Figures, RankingCurves | None]:
    scored = np.array([slide_scores[s.slide_id] is not None for s in test])
    known = [s for s in test if slide_scores[s.slide_id] is not None]
    labels = np.array([s.truth for s in known], dtype=np.int64)
    scores = np.array([slide_scores[s.slide_id] for s in known], dtype=np.float64)
    section = _Figures(
        {
            "aggregator": settings.aggregator,
            "n": len(known),
            "n_positive": int((labels == 1).sum()),
            "n_unscored": len(test) - len(known),
        }
    )
    section.add(*ranking_figures(labels, scores, what="slides"))
    if weights is not None:
        drawn = weights[:, scored]
        for name, figure in (
            ("roc_auc", weighted_roc_auc),
            ("average_precision", weighted_average_precision),
        ):
            values = figure(labels, scores, drawn) if known else np.full(len(weights), np.nan)
            defined = section.values[name] is not None
            section.add_interval(name, percentile_interval(values) if defined else None)
    else:
        section.values["roc_auc_ci95"] = None
        section.undefined["roc_auc_ci95"] = "no bootstrap was asked for"
    _add_delong(section, labels, scores)
    _add_threshold_figures(section, labels, scores, threshold, weights, scored)
    section.values["bootstrap"] = settings.bootstrap
    section.values["bootstrap_unit"] = "patient"
    return section, ranking_curves(labels, scores)


def _add_delong(section: _Figures, labels: NDArray[np.int64], scores: NDArray[np.float64]) -> None:
    result = delong_auc(labels, scores)
    section.values["roc_auc_delong_ci95"] = [result.low, result.high] if result else None
    if result is None:
        reason = "DeLong's variance needs two slides of each class"
        section.undefined["roc_auc_delong_ci95"] = reason


def _add_threshold_figures(
    section: _Figures,
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    threshold: SlideThreshold | None,
    weights: NDArray[np.int64] | None,
    scored: NDArray[np.bool_],
) -> None:
    names = ("accuracy", "sensitivity", "specificity")
    section.values["threshold"] = threshold.value if threshold else None
    section.values["threshold_source"] = threshold.source if threshold else None
    if threshold is None:
        reason = "validation slides cannot choose a threshold, and none is set"
        section.add(dict.fromkeys(names), dict.fromkeys(("threshold", *names), reason))
        return
    right = ((scores >= threshold.value) == (labels == 1)).astype(np.int64)
    positive, negative = (labels == 1).astype(np.int64), (labels == 0).astype(np.int64)
    for name, whole, reason in (
        ("accuracy", positive + negative, "no slide has a score"),
        ("sensitivity", positive, "no tumour slide"),
        ("specificity", negative, "no normal slide"),
    ):
        n = int(whole.sum())
        section.values[name] = int((right * whole).sum()) / n if n else None
        if not n:
            section.undefined[name] = reason
        if weights is not None:
            values = weighted_ratio(right * whole, whole, weights[:, scored])
            section.add_interval(name, percentile_interval(values))


# ------------------------------------------------------------ FROC


def _froc(
    test: Sequence[EvaluationSlide],
    definition: Definition,
    settings: EvaluateConfig,
    notes: list[str],
) -> tuple[FrocCurve, list[LesionRow]]:
    # A tumour slide of which only the label is known has lesions that nobody has counted.
    known = [s for s in test if s.truth == 0 or s.lesion_ids]
    if len(known) < len(test) and definition == DEFINITIONS[0]:
        left_out = [s.slide_id for s in test if s not in known]
        notes.append(
            f"FROC: {len(left_out)} tumour slides without annotated lesions left out: "
            + ", ".join(left_out)
        )
    match = _match_lesions if definition == "camelyon16" else _match_by_patch
    matched = [match(slide, settings) for slide in known]
    hits = [h for h, _ in matched]
    rows = [row for _, lesions in matched for row in lesions]
    if not known:
        return _no_froc(definition, settings), rows
    for line in describe_found(hits):
        log.info("%s: %s", definition, line)
    events = collect_events(hits, definition=definition)
    curve = build_froc(events, rates=settings.rates, at_rate=settings.at_rate)
    weights = _draw(known, settings)
    if weights is not None:
        curve = add_interval(
            curve,
            events,
            weights,
            seed=settings.seed,
            unit="patient",
            stratified=settings.stratified,
        )
    return curve, rows


def _no_froc(definition: Definition, settings: EvaluateConfig) -> FrocCurve:
    """State that no slide can be counted on."""
    nothing = SlideHits(np.zeros(0), np.zeros(0), normal=False)
    events = collect_events([nothing], definition=definition)
    curve = build_froc(events, rates=settings.rates, at_rate=settings.at_rate)
    reason = "no slide is normal or has annotated lesions"
    return replace(curve, n_slides=0, n_normal=0, undefined=dict.fromkeys(curve.undefined, reason))


def _match_lesions(
    slide: EvaluationSlide, settings: EvaluateConfig
) -> tuple[SlideHits, list[LesionRow]]:
    outside = find_outside(slide.detections, slide.slide_size)
    if outside.size:
        what = describe_outside(slide.detections, int(outside[0]), slide.slide_size)
        raise EvaluationError(f"slide {slide.slide_id}: {what}")
    # The rules are in µm along any direction: one µm per pixel for both axes, their mean.
    mpp = (slide.slide_mpp[0] + slide.slide_mpp[1]) / 2
    downsample = settings.reference_downsample
    if slide.truth == 0 or slide.annotation is None:
        reference = no_lesions(mpp=mpp, downsample=downsample, size=slide.slide_size)
    else:
        reference = label_polygons(
            slide.annotation.tumour, mpp=mpp, downsample=downsample, slide_size=slide.slide_size
        )
    hits = match_detections(reference, slide.detections)
    return hits, lesion_rows(slide.slide_id, reference, hits)


def _match_by_patch(
    slide: EvaluationSlide, settings: EvaluateConfig
) -> tuple[SlideHits, list[LesionRow]]:
    hits = match_patches(
        slide.scores.scores,
        slide.lesion_pairs,
        n_lesions=len(slide.lesion_ids),
        normal=slide.truth == 0,
    )
    return hits, named_lesion_rows(slide.slide_id, slide.lesion_ids, hits)


def _undefined(patch: _Figures, slide: _Figures, frocs: dict[str, FrocCurve]) -> dict[str, str]:
    """Collect the reasons of all sections, each figure named by its place in ``metrics.json``."""
    found = {f"patch.{name}": reason for name, reason in patch.undefined.items()}
    found |= {f"slide.{name}": reason for name, reason in slide.undefined.items()}
    for section, curve in frocs.items():
        found |= {f"{section}.{name}": reason for name, reason in curve.undefined.items()}
    return found


# ------------------------------------------------------------ files


def _write_tables(
    out: Path,
    test: Sequence[EvaluationSlide],
    val: Sequence[EvaluationSlide],
    slide_scores: dict[str, float | None],
    threshold: SlideThreshold | None,
    settings: EvaluateConfig,
) -> None:
    confusions = {s.slide_id: _slide_confusion(s, settings) for s in test}
    write_rows(
        out / "slides.csv",
        SLIDE_COLUMNS,
        [
            _slide_cells(s, slide_scores[s.slide_id], threshold, confusions[s.slide_id])
            for s in test
        ],
    )
    write_rows(
        out / "validation.csv",
        ("slide_id", "label", "score"),
        [(s.slide_id, s.truth, slide_scores[s.slide_id]) for s in val],
    )
    write_rows(out / "patches.csv", PATCH_COLUMNS, (row for s in test for row in _patch_cells(s)))
    confusions["all"] = _confusion(test, settings)
    write_rows(
        out / "confusion.csv",
        ("slide_id", "true", "predicted_positive", "predicted_negative"),
        [row for slide_id, c in confusions.items() for row in _confusion_cells(slide_id, c)],
    )


def _slide_cells(
    slide: EvaluationSlide, score: float | None, threshold: SlideThreshold | None, c: Confusion
) -> list[Cell]:
    known = score is not None and threshold is not None
    predicted = int(score >= threshold.value) if known else None  # type: ignore[operator,union-attr]
    return [slide.slide_id, slide.truth, score, predicted, c.tp, c.fp, c.fn, c.tn]


def _patch_cells(slide: EvaluationSlide) -> list[list[Cell]]:
    lesions: list[list[str]] = [[] for _ in slide.patch_labels]
    for patch, lesion in slide.lesion_pairs.tolist():
        lesions[patch].append(slide.lesion_ids[lesion])
    scores = slide.scores.scores.astype(np.float64).tolist()
    return [
        [slide.slide_id, x, y, None if score != score else score, label, ";".join(ids)]
        for (x, y), score, label, ids in zip(
            slide.scores.coords.tolist(), scores, slide.patch_labels.tolist(), lesions, strict=True
        )
    ]


def _confusion_cells(slide_id: str, confusion: Confusion) -> list[list[Cell]]:
    """Lay a matrix out as the lecture does: rows true, columns predicted, positive first."""
    return [
        [slide_id, "positive", confusion.tp, confusion.fn],
        [slide_id, "negative", confusion.fp, confusion.tn],
    ]


def _write_ranking(out: Path, curves: list[tuple[str, RankingCurves, dict[str, Any]]]) -> None:
    roc: list[list[Cell]] = []
    precision_recall: list[list[Cell]] = []
    for name, curve, _ in curves:
        roc += _curve_cells(name, curve.roc)
        precision_recall += _curve_cells(name, curve.precision_recall)
    write_rows(out / "roc.csv", ("of", "threshold", "fpr", "tpr"), roc)
    write_rows(out / "pr.csv", ("of", "threshold", "recall", "precision"), precision_recall)
    draw_roc(out / "roc.png", [(name, c, values["roc_auc"]) for name, c, values in curves])
    draw_precision_recall(
        out / "pr.png", [(name, c, values["average_precision"]) for name, c, values in curves]
    )


def _curve_cells(name: str, points: NDArray[np.float64]) -> list[list[Cell]]:
    return [
        [name, threshold if np.isfinite(threshold) else None, x, y]
        for threshold, x, y in points.tolist()
    ]


def _write_frocs(
    out: Path,
    frocs: dict[Definition, tuple[FrocCurve, list[LesionRow]]],
    primary: Definition,
) -> None:
    for definition, (curve, rows) in frocs.items():
        write_curve(out / f"froc_{definition}.csv", curve)
        write_lesions(out / f"lesions_{definition}.csv", rows)
        write_json(out / f"froc_{definition}.json", froc_to_json(curve))
    curve, rows = frocs[primary]
    write_curve(out / "froc.csv", curve)
    write_lesions(out / "lesions.csv", rows)
    draw_froc(out / "froc.png", [curve for curve, _ in frocs.values()])
    write_json(out / "froc.json", froc_to_json(curve))
