"""ROC and precision-recall curves, and the ROC AUC of patches on resampled slides."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from wsi_pipeline.evaluation.intervals import Kinds

# won, n_positive, n_negative of `pair_counts`
PairCounts = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class RankingCurves:
    """ROC and precision-recall points, thresholds descending."""

    roc: NDArray[np.float64]  # (K, 3) threshold, false-positive rate, true-positive rate
    precision_recall: NDArray[np.float64]  # (L, 3) threshold, recall, precision


def ranking_curves(
    labels: NDArray[np.integer[Any]], scores: NDArray[np.floating[Any]]
) -> RankingCurves | None:
    """Draw the curves; None where one class is missing. Points on a straight line are left out."""
    if np.unique(labels).size < 2:
        return None
    values = np.asarray(scores, dtype=np.float64)
    fpr, tpr, thresholds = roc_curve(labels, values)
    precision, recall, cuts = precision_recall_curve(labels, values, drop_intermediate=True)
    return RankingCurves(
        roc=np.stack([thresholds, fpr, tpr], axis=1),
        precision_recall=np.stack([np.append(cuts, np.inf), recall, precision], axis=1)[::-1],
    )


# ------------------------------------------------------------ uncertainty


def patch_kinds(counts: PairCounts) -> Kinds:
    """Which slides have positive and which have negative patches; `counts` from `pair_counts`."""
    _, n_positive, n_negative = counts
    return {"positive patches": n_positive > 0, "negative patches": n_negative > 0}


def replicate_patch_auc(counts: PairCounts, weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """Compute the ROC AUC of all patches together for each replicate.

    It is a weighted sum over pairs of slides, so it costs the same for 100 patches per slide as for
    100,000.

    Parameters
    ----------
    counts : won, n_positive, n_negative
        From `pair_counts`.
    weights : (B, S)

    Returns
    -------
    auc : (B,)
        NaN where a replicate lacks a class.
    """
    won, n_positive, n_negative = counts
    drawn = weights.astype(np.float64)
    pairs = (drawn @ n_positive) * (drawn @ n_negative)
    total = ((drawn @ won) * drawn).sum(axis=1)
    auc = np.full(len(weights), np.nan)
    np.divide(total, pairs, out=auc, where=pairs > 0)
    return auc


def pair_counts(
    labels: Sequence[NDArray[np.integer[Any]]], scores: Sequence[NDArray[np.floating[Any]]]
) -> PairCounts:
    """Count, for each pair of slides, how often a positive of one outranks a negative of the other.

    Returns
    -------
    won : (S, S)
        Row: slide of the positives; column: of the negatives; ties one half.
    n_positive, n_negative : (S,)
    """
    slide = np.repeat(np.arange(len(labels)), [len(part) for part in labels])
    label = np.concatenate(labels)
    rank = np.unique(np.concatenate(scores), return_inverse=True)[1]
    positive = label == 1
    n_positive = np.bincount(slide[positive], minlength=len(labels))
    n_negative = np.bincount(slide[label == 0], minlength=len(labels))
    won = np.zeros((len(labels), len(labels)))
    n_ranks = int(rank.max()) + 1 if rank.size else 0
    for other in np.flatnonzero(n_negative):
        negatives = np.bincount(rank[(slide == other) & (label == 0)], minlength=n_ranks)
        beaten = np.cumsum(negatives) - 0.5 * negatives  # by a positive of each rank
        won[:, other] = np.bincount(
            slide[positive], weights=beaten[rank[positive]], minlength=len(labels)
        )
    return won, n_positive, n_negative
