"""Every threshold's confusion: what a threshold would give, before one is chosen."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.evaluation.tables import Cell

SWEEP_COLUMNS = (
    "threshold", "tp", "fp", "fn", "tn",
    "accuracy", "precision", "recall", "specificity", "f1", "youden_j",
)  # fmt: skip
MAX_ROWS = 1000


def sweep_thresholds(
    labels: NDArray[np.integer[Any]],
    scores: NDArray[np.floating[Any]],
    *,
    including: Sequence[float] = (),
    max_rows: int = MAX_ROWS,
) -> NDArray[np.float64]:
    """Choose thresholds: the distinct scores, thinned evenly in their order where there are many.

    Parameters
    ----------
    labels, scores : (N,)
    including : sequence of float
        Thresholds that are looked at whatever the scores are.

    Returns
    -------
    thresholds : (K,) float64, descending
        At most `max_rows` and `including`; the lowest and the highest score among them.
    """
    distinct = np.unique(np.asarray(scores, dtype=np.float64)[labels >= 0])
    if distinct.size > max_rows:
        distinct = distinct[np.linspace(0, distinct.size - 1, max_rows).round().astype(np.int64)]
    together: NDArray[np.float64] = np.unique(np.append(distinct, including))[::-1]
    return together


def count_from(
    values: NDArray[np.floating[Any]], thresholds: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Count the values that reach each threshold.

    Examples
    --------
    >>> count_from(np.array([0.2, 0.7, 0.7]), np.array([0.9, 0.7, 0.0])).tolist()
    [0, 2, 3]
    """
    ordered = np.sort(values.astype(np.float64))
    return (values.size - np.searchsorted(ordered, thresholds, side="left")).astype(np.int64)


def sweep_rows(
    labels: NDArray[np.integer[Any]],
    scores: NDArray[np.floating[Any]],
    thresholds: NDArray[np.float64],
) -> list[list[Cell]]:
    """Count what each threshold gives; a patch is predicted positive iff score >= threshold.

    Parameters
    ----------
    labels : (N,) 1 or 0
    scores : (N,) without NaN
    thresholds : (K,)

    Returns
    -------
    rows : K lists of `SWEEP_COLUMNS`
        None where a share is undefined.

    Examples
    --------
    >>> sweep_rows(np.array([1, 0]), np.array([0.9, 0.4]), np.array([0.9, 0.4]))[0][:7]
    [0.9, 1, 0, 0, 1, 1.0, 1.0]
    """
    values = np.asarray(scores, dtype=np.float64)
    above = [count_from(values[labels == kind], thresholds) for kind in (1, 0)]
    n_positive, n_negative = (int(np.count_nonzero(labels == kind)) for kind in (1, 0))
    return [
        _row(t, tp, fp, n_positive - tp, n_negative - fp)
        for t, tp, fp in zip(thresholds.tolist(), *(part.tolist() for part in above), strict=True)
    ]


def _row(threshold: float, tp: int, fp: int, fn: int, tn: int) -> list[Cell]:
    recall, specificity = _share(tp, tp + fn), _share(tn, tn + fp)
    both = recall is not None and specificity is not None
    return [
        threshold,
        tp,
        fp,
        fn,
        tn,
        _share(tp + tn, tp + fp + fn + tn),
        _share(tp, tp + fp),
        recall,
        specificity,
        _share(2 * tp, 2 * tp + fp + fn),
        recall + specificity - 1 if both else None,  # type: ignore[operator]
    ]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
