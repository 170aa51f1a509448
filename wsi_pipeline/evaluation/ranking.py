"""ROC and precision-recall curves, and the ROC AUC of patches on resampled slides."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    from sklearn.metrics import precision_recall_curve, roc_curve  # half a second

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
    positive = [
        np.asarray(s[label == 1], np.float64) for label, s in zip(labels, scores, strict=True)
    ]
    negative = [
        np.asarray(s[label == 0], np.float64) for label, s in zip(labels, scores, strict=True)
    ]
    n_positive, n_negative = (
        np.array([part.size for part in parts], np.int64) for parts in (positive, negative)
    )
    # Negatives are counted between the positives' scores, which are few: the cost of a slide is
    # that of its negatives and of all positives, not of all patches.
    cuts, rank = np.unique(np.concatenate([np.empty(0), *positive]), return_inverse=True)
    slide = np.repeat(np.arange(len(labels)), n_positive)
    won = np.zeros((len(labels), len(labels)))
    for other in np.flatnonzero(n_negative):
        below, upto = (np.searchsorted(cuts, negative[other], side=s) for s in ("left", "right"))
        beaten = np.cumsum(np.bincount(upto, minlength=cuts.size + 1)[: cuts.size])
        ties = np.bincount(below[below < upto], minlength=cuts.size)
        won[:, other] = np.bincount(
            slide, weights=(beaten + 0.5 * ties)[rank], minlength=len(labels)
        )
    return won, n_positive, n_negative
