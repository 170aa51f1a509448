"""FROC: the share of lesions found against false positives per slide, by two definitions.

`match_detections` (CAMELYON16) and `match_patches` (the lecture) count one slide;
everything after that is the same for both: `build_froc` for the curve, `replicate_sensitivities`
for resampled slides. All probabilities are float64, so that ties are ties.

The cost is one sort: false positives and lesions' best scores together, descending, and running
sums over them.

References
----------
.. [1] B. Ehteshami Bejnordi et al., JAMA 2017;318:2199-2210, lesion-level analysis, with these
   repairs of the scripts that circulate: the smallest threshold is kept, all scores are float64,
   slides without detections stay in the denominators, and no lesion gives no score.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.contracts import (
    AtRate,
    Definition,
    Denominator,
    Detections,
    FrocCurve,
    OperatingPoint,
)
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.lesions import LesionReference

RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives per slide (CAMELYON16)
DEFAULT_DENOMINATOR: dict[Definition, Denominator] = {"camelyon16": "all", "patch": "normal"}

_REPLICATES_AT_ONCE = 64
_EVENTS_AT_FIRST = 4096


@dataclass(frozen=True)
class SlideHits:
    """What one slide contributes to the curve."""

    false_positives: NDArray[np.float64]  # (F,) scores
    best: NDArray[np.float64]  # (L,) best score of each lesion that counts; NaN = missed
    normal: bool  # no tumour in its reference
    n_itc: int = 0


def match_detections(reference: LesionReference, detections: Detections) -> SlideHits:
    """Match detections with lesions as CAMELYON16 does.

    On a normal slide each detection is a false positive. On a tumour slide one outside every
    label is; one on an ITC is ignored; any other is a hit, and a lesion keeps its highest score.

    Parameters
    ----------
    reference : LesionReference
    detections : Detections
        On the slide: see `find_outside`.
    """
    label = reference.label_at(detections.x, detections.y)
    scores = detections.scores.astype(np.float64)
    hit = label > 0
    best = np.full(reference.is_itc.size, -np.inf)
    np.maximum.at(best, label[hit] - 1, scores[hit])
    best[np.isneginf(best)] = np.nan
    return SlideHits(
        false_positives=scores[~hit],
        best=best[~reference.is_itc],
        normal=not reference.has_tumour,
        n_itc=reference.n_itc,
    )


def match_patches(
    scores: NDArray[np.floating[Any]],
    lesion_pairs: NDArray[np.int64],
    *,
    n_lesions: int,
    normal: bool,
) -> SlideHits:
    """Match patches with tumours as the lecture does.

    Parameters
    ----------
    scores : (N,)
        NaN = unreadable, such a patch counts as nothing.
    lesion_pairs : (M, 2) row of the patch, index of a lesion that its inner square intersects
    n_lesions : int
        Lesions without any patch included.
    normal : bool
        Only patches of normal slides can be false positives.
    """
    values = np.asarray(scores, dtype=np.float64)
    best = np.full(n_lesions, np.nan)
    if len(lesion_pairs):
        np.fmax.at(best, lesion_pairs[:, 1], values[lesion_pairs[:, 0]])
    false_positives = values[~np.isnan(values)] if normal else np.zeros(0)
    return SlideHits(false_positives=false_positives, best=best, normal=normal)


# ------------------------------------------------------------ the curve


@dataclass(frozen=True)
class FrocEvents:
    """Scores at which the curve moves, all slides together, descending."""

    definition: Definition
    fp_denominator: Denominator
    scores: NDArray[np.float64]  # (E,) descending
    slide: NDArray[np.int64]  # (E,) index of the slide
    is_fp: NDArray[np.bool_]  # (E,) a false positive that counts
    is_hit: NDArray[np.bool_]  # (E,) the best score of a lesion
    last: NDArray[np.int64]  # (K,) last event of each distinct score
    n_lesions: NDArray[np.int64]  # (S,) lesions of each slide that count
    normal: NDArray[np.bool_]  # (S,)
    n_itc: int

    @property
    def in_denominator(self) -> NDArray[np.bool_]:
        """(S,) Whether a slide counts in the mean number of false positives."""
        return self.normal if self.fp_denominator == "normal" else np.ones_like(self.normal)

    @property
    def kinds(self) -> dict[str, NDArray[np.bool_]]:
        """Slides that a resampled set needs for its curve to be defined, by what they are."""
        counted = "normal slides" if self.fp_denominator == "normal" else "slides"
        return {"lesions": self.n_lesions > 0, counted: self.in_denominator}


def collect_events(
    hits: Sequence[SlideHits], *, definition: Definition, fp_denominator: Denominator | None = None
) -> FrocEvents:
    """Sort what all slides contribute.

    Parameters
    ----------
    fp_denominator : "all" or "normal", optional
        Default: all for camelyon16, normal for patch.
    """
    fp_denominator = fp_denominator or DEFAULT_DENOMINATOR[definition]
    normal = np.array([h.normal for h in hits], dtype=bool)
    # With the normal slides as denominator, others' false positives are points that add nothing.
    counts = normal if fp_denominator == "normal" else np.ones_like(normal)
    n_fp = np.array([h.false_positives.size for h in hits], np.int64)
    n_lesions = np.array([h.best.size for h in hits], np.int64)
    index = np.arange(len(hits))
    slide = np.concatenate([np.repeat(index, n_fp), np.repeat(index, n_lesions)])
    scores = np.concatenate(
        [np.zeros(0), *(h.false_positives for h in hits), *(h.best for h in hits)]
    )
    order = np.argsort(-scores, kind="stable")  # lesions never hit, NaN, come last
    order = order[: scores.size - np.isnan(scores).sum()]
    scores, slide, is_hit = scores[order], slide[order], order >= n_fp.sum()
    changes = np.flatnonzero(np.diff(scores))
    return FrocEvents(
        definition=definition,
        fp_denominator=fp_denominator,
        scores=scores,
        slide=slide,
        is_fp=~is_hit & counts[slide],
        is_hit=is_hit,
        last=np.append(changes, scores.size - 1) if scores.size else changes,
        n_lesions=n_lesions,
        normal=normal,
        n_itc=sum(h.n_itc for h in hits),
    )


def build_froc(
    events: FrocEvents, *, rates: Sequence[float] = RATES, at_rate: AtRate = "linear"
) -> FrocCurve:
    """Draw the curve and read it at the rates.

    Parameters
    ----------
    rates : false positives per slide, >= 0
    at_rate : "linear" or "step"
        See `read_sensitivity`.

    Returns
    -------
    curve : FrocCurve
        Points within a horizontal line are left out (`find_corners`), so a curve has at most two
        points per lesion, and two, however many false positives there are. Where there is no
        lesion, or no slide to count false positives on, the figures are None with a reason in
        `undefined`.

    Raises
    ------
    EvaluationError
        If there is no slide, or a rate is none.
    """
    if not events.normal.size:
        raise EvaluationError("no slides to evaluate")
    check_rates(rates)
    n_lesions = int(events.n_lesions.sum())
    n_denominator = int(events.in_denominator.sum())
    fps = np.concatenate([[0], np.cumsum(events.is_fp)[events.last]])
    hits = np.concatenate([[0], np.cumsum(events.is_hit)[events.last]])
    thresholds = np.concatenate([[np.inf], events.scores[events.last]])
    reason = _reason_undefined(events, n_lesions, n_denominator)
    points: list[OperatingPoint | None] = [None] * len(rates)
    if not reason:
        per_slide = fps / n_denominator
        points = [
            OperatingPoint(float(thresholds[k]), float(per_slide[k]), float(hits[k] / n_lesions))
            for k in find_operating_points(per_slide, hits, rates).tolist()
        ]
    kept = find_corners(fps, hits)
    thresholds, fps, hits = thresholds[kept], fps[kept], hits[kept]
    nothing = np.full(fps.size, np.nan)
    avg_fps = fps / n_denominator if n_denominator else nothing
    sensitivity = hits / n_lesions if n_lesions else nothing
    at = [None] * len(rates)
    if not reason:
        at = read_sensitivity(avg_fps, sensitivity, rates, at_rate=at_rate).tolist()
    undefined = {"sensitivity_at": reason, "score": reason} if reason else {}
    if not n_lesions:
        undefined["sensitivity"] = reason
    if not n_denominator:
        undefined["avg_fps"] = "there is no normal slide to count false positives on"
    return FrocCurve(
        definition=events.definition,
        fp_denominator=events.fp_denominator,
        at_rate=at_rate,
        n_slides=events.normal.size,
        n_normal=int(events.normal.sum()),
        n_lesions=n_lesions,
        n_itc=events.n_itc,
        thresholds=thresholds,
        avg_fps=avg_fps,
        sensitivity=sensitivity,
        sensitivity_at=dict(zip(map(rate_name, rates), at, strict=True)),
        operating_points=dict(zip(map(rate_name, rates), points, strict=True)),
        score=None if reason else float(np.mean(np.array(at, dtype=np.float64))),
        undefined=undefined,
    )


def find_operating_points(
    avg_fps: NDArray[np.float64], hits: NDArray[np.int64], rates: Sequence[float]
) -> NDArray[np.int64]:
    """Find the threshold for each rate: the one with the most false positives that it allows.

    Of thresholds with equally many, the one with most hits; of equal points, the first, which has
    the highest threshold. Where the curve is read by ``step``, its sensitivity is the one read.

    Parameters
    ----------
    avg_fps, hits : (K,)
        Neither decreases; all points of the curve, not its corners alone.
    rates : (R,) >= 0

    Returns
    -------
    chosen : (R,)
        Indices.

    Examples
    --------
    >>> avg_fps, hits = np.array([0.0, 0.0, 0.5, 1.0, 1.0, 1.0]), np.array([0, 1, 1, 1, 2, 2])
    >>> find_operating_points(avg_fps, hits, [0.25, 0.9, 1, 8]).tolist()
    [1, 2, 4, 4]
    """
    last = np.searchsorted(avg_fps, np.asarray(rates, np.float64), side="right") - 1
    # The first of the points equal to it: where both have reached their values.
    first = [np.searchsorted(values, values[last], side="left") for values in (avg_fps, hits)]
    return np.asarray(np.maximum(*first), np.int64)


def find_corners(x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Find the points of a curve other than those within its horizontal lines.

    Parameters
    ----------
    x, y : (K,)
        Neither decreases.

    Returns
    -------
    kept : (M,)
        Indices: the first and the last point, and those where `y` increases or is about to; of
        equal points, the first. At most twice as many as there are increases, and two.

    Examples
    --------
    >>> find_corners(np.array([0, 0, 1, 2, 3, 3]), np.array([0, 1, 1, 1, 1, 2])).tolist()
    [0, 1, 4, 5]
    """
    moved = np.flatnonzero((np.diff(x) > 0) | (np.diff(y) > 0)) + 1
    distinct = np.concatenate([[0], moved])
    up = np.diff(y[distinct]) > 0
    is_corner = np.ones(distinct.size, bool)
    is_corner[1:-1] = up[:-1] | up[1:]
    return np.asarray(distinct[is_corner], np.int64)


def check_rates(rates: Sequence[float]) -> None:
    """See that rates can be read off a curve.

    Raises
    ------
    EvaluationError
        If there are none, one is negative or not a number, or one is repeated.
    """
    if not rates:
        raise EvaluationError("no rate given; name false positives per slide, such as 0.25,0.5,1")
    for rate in rates:
        if not (math.isfinite(rate) and rate >= 0):
            raise EvaluationError(f"rate {rate} is not a number of false positives per slide")
    if len(set(rates)) < len(rates):
        raise EvaluationError(f"a rate is repeated in {','.join(map(rate_name, rates))}")


def rate_name(rate: float) -> str:
    """Name a rate as ``froc.json`` does.

    Examples
    --------
    >>> [rate_name(r) for r in (0.25, 1.0, 8)]
    ['0.25', '1', '8']
    """
    return str(int(rate)) if rate == int(rate) else repr(float(rate))


def _reason_undefined(events: FrocEvents, n_lesions: int, n_denominator: int) -> str:
    reasons = []
    if not n_lesions:
        itc = f" but {events.n_itc} ITC, which are left out" if events.n_itc else " at all"
        reasons.append(f"the reference holds no lesion{itc}")
    if not n_denominator:
        reasons.append("there is no normal slide to count false positives on")
    return "; ".join(reasons)


def read_sensitivity(
    avg_fps: NDArray[np.float64],
    sensitivity: NDArray[np.float64],
    rates: Sequence[float],
    *,
    at_rate: AtRate,
) -> NDArray[np.float64]:
    """Read a curve at given rates.

    ``step``: the best sensitivity at no more than that many false positives. ``linear``: on the
    straight lines between the curve's points; of several points at one rate, the line on the left
    ends in the lowest, while the rate itself and the line on the right start from the highest;
    beyond the last point its sensitivity.

    Parameters
    ----------
    avg_fps, sensitivity : (K,)
        Both never fall; `avg_fps` starts at 0.
    rates : (R,) >= 0

    Returns
    -------
    sensitivity : (R,)

    Examples
    --------
    >>> curve = np.array([0.0, 1.0, 1.0, 2.0]), np.array([0.0, 0.2, 0.6, 1.0])
    >>> read_sensitivity(*curve, [0.5, 1, 1.5, 9], at_rate="linear").tolist()
    [0.1, 0.6, 0.8, 1.0]
    >>> read_sensitivity(*curve, [0.5, 1, 1.5, 9], at_rate="step").tolist()
    [0.0, 0.6, 0.6, 1.0]
    """
    wanted = np.asarray(rates, dtype=np.float64)
    # The last point at or below each rate is the highest of those at one rate.
    left = np.searchsorted(avg_fps, wanted, side="right") - 1
    value = sensitivity[left].copy()
    if at_rate == "linear":
        between = (left + 1 < avg_fps.size) & (avg_fps[left] < wanted)
        a = left[between]
        slope = (sensitivity[a + 1] - sensitivity[a]) / (avg_fps[a + 1] - avg_fps[a])
        value[between] += slope * (wanted[between] - avg_fps[a])
    return value


# ------------------------------------------------------------ resampled slides


def replicate_sensitivities(
    events: FrocEvents,
    weights: NDArray[np.int64],
    *,
    rates: Sequence[float] = RATES,
    at_rate: AtRate = "linear",
) -> NDArray[np.float64]:
    """Read the curves of resampled sets of slides.

    Parameters
    ----------
    weights : (B, S) >= 0
        How often each replicate holds each slide.

    Returns
    -------
    sensitivity : (B, R)
        NaN for a replicate without a lesion, or without a slide to count false positives on.
    """
    check_rates(rates)
    n_lesions: NDArray[np.int64] = weights @ events.n_lesions
    n_denominator: NDArray[np.int64] = weights @ events.in_denominator.astype(np.int64)
    result = np.full((len(weights), len(rates)), np.nan)
    usable = np.flatnonzero((n_lesions > 0) & (n_denominator > 0))
    for start in range(0, usable.size, _REPLICATES_AT_ONCE):
        rows = usable[start : start + _REPLICATES_AT_ONCE]
        fps, hits = _replicate_counts(events, weights[rows], n_denominator[rows], max(rates))
        avg_fps = fps / n_denominator[rows, None]
        sensitivity = hits / n_lesions[rows, None]
        for row, x, y in zip(rows, avg_fps, sensitivity, strict=True):
            result[row] = read_sensitivity(x, y, rates, at_rate=at_rate)
    return result


def _replicate_counts(
    events: FrocEvents,
    weights: NDArray[np.int64],
    n_denominator: NDArray[np.int64],
    max_rate: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count false positives and hits of replicates down to where all have passed `max_rate`.

    Returns
    -------
    fps, hits : (b, k + 1)
        With the point (0, 0) in front.
    """
    n_events = _EVENTS_AT_FIRST
    while True:
        last = events.last[: np.searchsorted(events.last, n_events)]
        stop = int(last[-1]) + 1 if last.size else 0
        drawn = weights[:, events.slide[:stop]]
        fps = np.cumsum(drawn * events.is_fp[:stop], axis=1, dtype=np.int64)[:, last]
        complete = last.size == events.last.size
        if complete or (last.size and (fps[:, -1] / n_denominator > max_rate).all()):
            hits = np.cumsum(drawn * events.is_hit[:stop], axis=1, dtype=np.int64)[:, last]
            origin = np.zeros((len(weights), 1), dtype=np.int64)
            return np.hstack([origin, fps]), np.hstack([origin, hits])
        n_events *= 2


# ------------------------------------------------------------ froc.json


def froc_to_json(curve: FrocCurve) -> dict[str, Any]:
    """Format a curve as ``froc.json``."""
    points = zip(
        curve.thresholds.tolist(), curve.avg_fps.tolist(), curve.sensitivity.tolist(), strict=True
    )
    return {
        "definition": curve.definition,
        "fp_denominator": curve.fp_denominator,
        "at_rate": curve.at_rate,
        "n_slides": curve.n_slides,
        "n_normal": curve.n_normal,
        "n_lesions": curve.n_lesions,
        "n_itc": curve.n_itc,
        "curve": [
            {
                "threshold": number_or_none(threshold),
                "avg_fps": number_or_none(avg_fps),
                "sensitivity": number_or_none(sensitivity),
            }
            for threshold, avg_fps, sensitivity in points
        ],
        "sensitivity_at": curve.sensitivity_at,
        "operating_points": {
            rate: point
            and {
                "threshold": number_or_none(point.threshold),
                "avg_fps": point.avg_fps,
                "sensitivity": point.sensitivity,
            }
            for rate, point in curve.operating_points.items()
        },
        "score": curve.score,
        "score_ci95": list(curve.score_ci95) if curve.score_ci95 else None,
        "bootstrap": curve.bootstrap,
        "band": curve.band,
        "undefined": curve.undefined,
    }


def number_or_none(value: float) -> float | None:
    """Turn infinity and NaN, which JSON does not have, into None."""
    return value if math.isfinite(value) else None
