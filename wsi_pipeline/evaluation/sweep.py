"""Every threshold's confusion: what a threshold would give, before one is chosen."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.evaluation.metrics import Confusion, shares_of
from wsi_pipeline.evaluation.tables import Cell

MAX_ROWS = 1000


def sweep_columns() -> list[str]:
    """Name the columns of `sweep_rows`."""
    shares = [share.name for share in shares_of("sweep")]
    return ["threshold", "tp", "fp", "fn", "tn", *shares, "youden_j"]


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
        Thresholds that are always included.

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
    rows : K lists of `sweep_columns`
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
        _row(t, Confusion(tp, fp, n_positive - tp, n_negative - fp))
        for t, tp, fp in zip(thresholds.tolist(), *(part.tolist() for part in above), strict=True)
    ]


def _row(threshold: float, c: Confusion[int]) -> list[Cell]:
    shares = {share.name: share.compute(c) for share in shares_of("sweep")}
    recall, specificity = shares["recall"], shares["specificity"]
    youden_j = None if recall is None or specificity is None else recall + specificity - 1
    return [threshold, c.tp, c.fp, c.fn, c.tn, *shares.values(), youden_j]
