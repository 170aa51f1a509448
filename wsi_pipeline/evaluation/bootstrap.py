"""How sure a figure is: percentile intervals over resampled slides or patients.

A replicate is a row of weights: how often it holds each slide. Every figure has a form that takes
all replicates at once, so nothing is counted twice and two models can be compared on the same
replicates.

References
----------
.. [1] B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import EvaluationError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A percentile interval and what it was made of."""

    low: float
    high: float
    n_used: int
    n_skipped: int  # replicates in which the figure is undefined


@dataclass(frozen=True)
class PairedComparison:
    """Two models on the same replicates."""

    difference: float  # first - second, on the slides as they are
    low: float
    high: float
    p_value: float  # two-sided
    n_used: int
    n_skipped: int


def draw_weights(
    n_slides: int,
    *,
    n_replicates: int,
    seed: int,
    patients: Sequence[str] | None = None,
    strata: Sequence[bool] | NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Resample slides with replacement.

    Parameters
    ----------
    patients : (n_slides,), optional
        Slides of one patient are drawn together; default: each slide by itself.
    strata : (n_slides,), optional
        Whether a slide has tumour: patients with and without are drawn apart, so that each
        replicate has as many of both as there are. A patient with any such slide is of that kind.

    Returns
    -------
    weights : (n_replicates, n_slides) int64

    Raises
    ------
    EvaluationError
        If there is nothing to draw, or no replicate is asked for.
    """
    if n_slides < 1 or n_replicates < 1:
        raise EvaluationError(
            "a bootstrap needs at least one slide and one replicate, "
            f"got {n_slides} slides and {n_replicates} replicates"
        )
    generator = np.random.default_rng(seed)
    names = [str(i) for i in range(n_slides)] if patients is None else list(patients)
    _, first, group = np.unique(names, return_index=True, return_inverse=True)
    # Numbered as they appear, so that names do not change what a seed draws.
    group = np.argsort(np.argsort(first))[group]
    stratum = np.zeros(first.size, dtype=bool)
    if strata is not None:
        np.logical_or.at(stratum, group, np.asarray(strata, dtype=bool))
    weights = np.zeros((n_replicates, first.size), dtype=np.int64)
    for kind in (True, False):
        members = np.flatnonzero(stratum == kind)
        if members.size:
            drawn = generator.integers(members.size, size=(n_replicates, members.size))
            weights[:, members] = _count_rows(drawn, members.size)
    return weights[:, group]


def _count_rows(drawn: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    offset = np.arange(len(drawn))[:, None] * n
    return np.bincount((drawn + offset).ravel(), minlength=len(drawn) * n).reshape(-1, n)


def percentile_interval(
    values: NDArray[np.float64], *, confidence: float = CONFIDENCE
) -> Interval | None:
    """Take the interval that holds the middle share of the replicates.

    Parameters
    ----------
    values : (B,)
        NaN where the figure is undefined; those are skipped and counted.

    Returns
    -------
    interval : Interval
        None if every replicate is undefined.
    """
    used = values[~np.isnan(values)]
    if not used.size:
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(used, [tail, 1 - tail])
    return Interval(float(low), float(high), used.size, values.size - used.size)


def compare_paired(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    *,
    difference: float,
    confidence: float = CONFIDENCE,
) -> PairedComparison | None:
    """Compare two models' figures on the same replicates.

    Parameters
    ----------
    first, second : (B,)
        From the same weights; NaN where undefined.
    difference : float
        First minus second, on the slides as they are.

    Returns
    -------
    comparison : PairedComparison
        `p_value` is twice the smaller share of replicates on either side of no difference, ties on
        both sides, never 0: with B replicates nothing below 2 / (B + 1) can be told. None if no
        replicate is defined for both.
    """
    gaps = first - second
    interval = percentile_interval(gaps, confidence=confidence)
    if interval is None:
        return None
    used = gaps[~np.isnan(gaps)]
    rarer = min(np.count_nonzero(used <= 0), np.count_nonzero(used >= 0))
    return PairedComparison(
        difference=difference,
        low=interval.low,
        high=interval.high,
        p_value=min(1.0, 2 * (1 + rarer) / (used.size + 1)),
        n_used=interval.n_used,
        n_skipped=interval.n_skipped,
    )


# ------------------------------------------------------------ figures on weighted slides


def weighted_roc_auc(
    labels: NDArray[np.int64], scores: NDArray[np.float64], weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Compute the ROC AUC (Mann-Whitney, ties one half) of each replicate.

    Parameters
    ----------
    labels : (S,) 1 or 0
    scores : (S,)
    weights : (B, S)

    Returns
    -------
    auc : (B,)
        NaN where a replicate lacks a class.
    """
    positives, negatives = _by_score(labels, scores, weights)
    below = np.cumsum(negatives, axis=1) - negatives
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    won = (positives * (below + 0.5 * negatives)).sum(axis=1)
    return _divide(won, pairs)


def weighted_average_precision(
    labels: NDArray[np.int64], scores: NDArray[np.float64], weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Compute the average precision of each replicate; see `weighted_roc_auc`.

    The sum over distinct thresholds, descending, of precision times the gain in recall.
    """
    positives, negatives = _by_score(labels, -scores, weights)
    hits = np.cumsum(positives, axis=1)
    precision = _divide(hits, hits + np.cumsum(negatives, axis=1), where_not=0.0)
    return _divide((precision * positives).sum(axis=1), positives.sum(axis=1))


def _by_score(
    labels: NDArray[np.int64], scores: NDArray[np.float64], weights: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sum weights by distinct score, ascending: (B, U) of positives and of negatives."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    drawn = weights[:, order]
    positive = labels[order] == 1
    return (
        np.add.reduceat(drawn * positive, starts, axis=1),
        np.add.reduceat(drawn * ~positive, starts, axis=1),
    )


def _divide(
    value: NDArray[np.float64] | NDArray[np.int64],
    by: NDArray[np.int64],
    *,
    where_not: float = np.nan,
) -> NDArray[np.float64]:
    result = np.full(by.shape, where_not)
    np.divide(value, by, out=result, where=by > 0)
    return result


def weighted_ratio(
    part: NDArray[np.int64], whole: NDArray[np.int64], weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Compute a share of each replicate from slides' counts, for example sensitivity.

    Parameters
    ----------
    part, whole : (S,) counts of each slide
    weights : (B, S)

    Returns
    -------
    ratio : (B,)
        NaN where the whole is nothing.
    """
    return _divide((weights @ part).astype(np.float64), weights @ whole)
