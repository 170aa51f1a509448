"""How well patches are classified: confusion per slide and over all, ROC and precision-recall."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from wsi_pipeline.evaluation.bootstrap import Resamples
from wsi_pipeline.evaluation.intervals import Interval, Kinds, Undefined, percentile_interval


@dataclass(frozen=True)
class Confusion:
    """Counts of one slide, or of all."""

    tp: int
    fp: int
    fn: int
    tn: int

    def __add__(self, other: "Confusion") -> "Confusion":
        return Confusion(
            self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn
        )

    @property
    def n(self) -> int:
        """How many were counted."""
        return self.tp + self.fp + self.fn + self.tn


def count_confusion(
    labels: NDArray[np.integer[Any]], scores: NDArray[np.floating[Any]], *, threshold: float
) -> Confusion:
    """Count patches predicted positive iff score >= threshold.

    Parameters
    ----------
    labels : (N,) 1, 0, -1
        Those of -1 are left out.
    scores : (N,)
        NaN (unreadable) are left out.

    Examples
    --------
    >>> labels, scores = np.array([1, 1, 0, 0, -1]), np.array([0.75, 0.2, 0.9, 0.1, 0.9])
    >>> count_confusion(labels, scores, threshold=0.75)
    Confusion(tp=1, fp=1, fn=1, tn=1)
    """
    # In float64, as the tables say scores: float32 0.7 is 0.69999999, which does not reach 0.7.
    predicted = np.asarray(scores, dtype=np.float64) >= threshold
    known = ~np.isnan(scores)
    positive, negative = known & (labels == 1), known & (labels == 0)
    return Confusion(
        tp=int(np.count_nonzero(positive & predicted)),
        fp=int(np.count_nonzero(negative & predicted)),
        fn=int(np.count_nonzero(positive & ~predicted)),
        tn=int(np.count_nonzero(negative & ~predicted)),
    )


def confusion_figures(confusion: Confusion) -> tuple[dict[str, float | None], dict[str, str]]:
    """Compute the shares of a confusion matrix.

    Returns
    -------
    figures : dict
        ``accuracy``, ``precision``, ``recall``, ``f1``; None where undefined.
    undefined : dict
        Why.
    """
    c = confusion
    figures: dict[str, float | None] = {}
    undefined: dict[str, str] = {}
    for name, part, whole, reason in (
        ("accuracy", c.tp + c.tn, c.n, "no labelled patch"),
        ("precision", c.tp, c.tp + c.fp, "no patch is predicted positive"),
        ("recall", c.tp, c.tp + c.fn, "no positive patch"),
        ("f1", 2 * c.tp, 2 * c.tp + c.fp + c.fn, "no patch is positive or predicted positive"),
    ):
        figures[name] = part / whole if whole else None
        if not whole:
            undefined[name] = reason
    return figures, undefined


# ------------------------------------------------------------ ranking


def ranking_figures(
    labels: NDArray[np.integer[Any]], scores: NDArray[np.floating[Any]], *, what: str
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Compute ROC AUC and average precision.

    Parameters
    ----------
    labels : (N,) 1 or 0
    scores : (N,)
    what : str
        Plural noun for the reasons, such as ``patches``.

    Returns
    -------
    figures : dict
        ``roc_auc``, ``average_precision``; None where undefined.
    undefined : dict
        Why.
    """
    n_positive, n = int(np.count_nonzero(labels == 1)), labels.size
    if not n:
        reason = f"no labelled {what}"
    elif n_positive in (0, n):
        reason = f"all {n} {what} are {'positive' if n_positive else 'negative'}"
    else:
        figures: dict[str, float | None] = {
            "roc_auc": float(roc_auc_score(labels, scores)),
            "average_precision": float(average_precision_score(labels, scores)),
        }
        return figures, {}
    names = ("roc_auc", "average_precision")
    return dict.fromkeys(names), dict.fromkeys(names, reason)


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


def patch_auc_interval(
    labels: Sequence[NDArray[np.integer[Any]]],
    scores: Sequence[NDArray[np.floating[Any]]],
    resamples: Resamples,
) -> Interval | Undefined:
    """Bootstrap the ROC AUC of all patches together over their slides.

    Which pairs of patches are won, counted once for each pair of slides, is all that a replicate
    needs: its AUC is a weighted sum over pairs of slides. So it costs the same for 100 patches
    per slide as for 100,000.

    Parameters
    ----------
    labels, scores : one array (N_s,) for each of S slides; labels 1 or 0
    resamples : Resamples
        Of the S slides.
    """
    counts = pair_counts(labels, scores)
    values = replicate_patch_auc(counts, resamples.weights)
    return percentile_interval(values, resamples, kinds=patch_kinds(counts))


def patch_kinds(counts: tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]) -> Kinds:
    """Which slides have positive and which have negative patches; `counts` from `pair_counts`."""
    _, n_positive, n_negative = counts
    return {"positive patches": n_positive > 0, "negative patches": n_negative > 0}


def replicate_patch_auc(
    counts: tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]],
    weights: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Compute the ROC AUC of all patches together for each replicate.

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
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
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
