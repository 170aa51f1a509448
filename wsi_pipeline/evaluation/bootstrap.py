"""Resampled sets of slides or patients, and figures on all of them at once.

A replicate is a row of weights: how often it holds each slide. Every figure has a form that takes
all replicates at once, so nothing is counted twice and two models can be compared on the same
replicates. What becomes of the replicates is in `wsi_pipeline.evaluation.intervals`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.wording import pluralize
from wsi_pipeline.errors import EvaluationError


@dataclass(frozen=True)
class Resamples:
    """Replicates of some rows (slides, images), and which rows are drawn together."""

    weights: NDArray[np.int64]  # (B, S) how often each replicate holds each row
    group: NDArray[np.int64]  # (S,) rows with the same number are drawn together
    unit: str = "patient"  # what a group is, singular

    @property
    def n_groups(self) -> int:
        """How many patients there are."""
        return int(np.unique(self.group).size)

    def describe(self) -> str:
        """Count the groups in words, such as ``3 patients``."""
        return pluralize(self.n_groups, self.unit)

    def take(self, rows: NDArray[np.bool_] | Sequence[int]) -> "Resamples":
        """Keep some rows."""
        return Resamples(self.weights[:, rows], self.group[rows], self.unit)

    def sum_groups(self, counts: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Sum the rows' counts (S,) by group: (K,)."""
        index = np.unique(self.group, return_inverse=True)[1]
        return np.bincount(index, weights=counts, minlength=self.n_groups).astype(np.int64)


def draw_resamples(
    groups: Sequence[str],
    *,
    n_replicates: int,
    seed: int,
    unit: str = "patient",
    strata: Sequence[bool] | NDArray[np.bool_] | None = None,
) -> Resamples:
    """Resample rows with replacement, those of one group together.

    Parameters
    ----------
    groups : (S,)
        Patient of each row. Their names do not change what a seed draws.
    unit : str
        What a group is, singular.
    strata : (S,), optional
        Whether a row has tumour: patients with and without are drawn apart, so that each
        replicate has as many of both as there are. A patient with any such row is of that kind.

    Raises
    ------
    EvaluationError
        If there is nothing to draw, or no replicate is asked for.
    """
    if not len(groups) or n_replicates < 1:
        raise EvaluationError(
            "a bootstrap needs at least one slide and one replicate, got "
            f"{pluralize(len(groups), 'slide')} and {pluralize(n_replicates, 'replicate')}"
        )
    generator = np.random.default_rng(seed)
    _, first, group = np.unique(list(groups), return_index=True, return_inverse=True)
    group = np.argsort(np.argsort(first))[group]  # numbered as they appear
    stratum = np.zeros(first.size, dtype=bool)
    if strata is not None:
        np.logical_or.at(stratum, group, np.asarray(strata, dtype=bool))
    weights = np.zeros((n_replicates, first.size), dtype=np.int64)
    for kind in (True, False):
        members = np.flatnonzero(stratum == kind)
        if members.size:
            drawn = generator.integers(members.size, size=(n_replicates, members.size))
            weights[:, members] = _count_rows(drawn, members.size)
    return Resamples(weights[:, group], group, unit)


def _count_rows(drawn: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    offset = np.arange(len(drawn))[:, None] * n
    return np.bincount((drawn + offset).ravel(), minlength=len(drawn) * n).reshape(-1, n)


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
