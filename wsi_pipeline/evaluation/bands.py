"""Confidence bands of ROC curves: at each false-positive rate, the interval of the sensitivity.

The bands are pointwise: each place is the interval of one share, computed as every other share's;
whole curves lie within a band less often than 95 % of the time.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.evaluation.bootstrap import Resamples
from wsi_pipeline.evaluation.froc import read_sensitivity
from wsi_pipeline.evaluation.intervals import Interval, replicated_share_interval
from wsi_pipeline.evaluation.sweep import count_from, sweep_thresholds

ROC_GRID = np.linspace(0, 1, 101)  # false-positive rates


def roc_band(
    labels: Sequence[NDArray[np.integer[Any]]],
    scores: Sequence[NDArray[np.floating[Any]]],
    resamples: Resamples,
    *,
    max_thresholds: int = 1000,
) -> NDArray[np.float64] | None:
    """Compute the band of the ROC curve over the slides' pooled patches.

    Parameters
    ----------
    labels, scores : one array (N_s,) for each of S slides; labels 1 or 0
    resamples : Resamples
        Of the S slides.
    max_thresholds : int
        The curves are followed at so many of the distinct scores at most.

    Returns
    -------
    band : (G, 3)
        False-positive rate, lowest and highest true-positive rate; None where a class is missing,
        or there are too few patients for an interval. At a false-positive rate of 1 both are 1:
        there a curve ends by definition.
    """
    thresholds = sweep_thresholds(
        np.concatenate(labels), np.concatenate(scores), max_rows=max_thresholds
    )
    # One row more, in front: the slides as they are.
    drawn = np.vstack([np.ones((1, len(labels))), resamples.weights])
    tpr, fpr = (_rates(labels, scores, kind, thresholds, drawn) for kind in (1, 0))
    curves = np.full((len(drawn), ROC_GRID.size), np.nan)
    for row in np.flatnonzero(~np.isnan(tpr).any(axis=1) & ~np.isnan(fpr).any(axis=1)):
        curves[row] = read_sensitivity(fpr[row], tpr[row], ROC_GRID.tolist(), at_rate="linear")
    if np.isnan(curves[0]).any():
        return None
    n_positive = np.array([np.count_nonzero(label == 1) for label in labels])
    found = [
        replicated_share_interval(float(share), replicates, n_positive, resamples)
        for share, replicates in zip(curves[0], curves[1:].T, strict=True)
    ]
    ends = [(i.low, i.high) for i in found if isinstance(i, Interval)]
    if len(ends) < ROC_GRID.size:
        return None
    band = np.column_stack([ROC_GRID, np.array(ends)])
    band[-1, 1:] = 1
    return band


def _rates(
    labels: Sequence[NDArray[np.integer[Any]]],
    scores: Sequence[NDArray[np.floating[Any]]],
    kind: int,
    thresholds: NDArray[np.float64],
    drawn: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Share of one class that reaches each threshold, on each replicate: (B, K + 1), from 0."""
    counts = np.stack(
        [count_from(s[label == kind], thresholds) for label, s in zip(labels, scores, strict=True)]
    )
    total = np.array([np.count_nonzero(label == kind) for label in labels])
    above, whole = drawn @ counts, drawn @ total
    rate = np.full(above.shape, np.nan)
    np.divide(above, whole[:, None], out=rate, where=whole[:, None] > 0)
    return np.hstack([np.zeros((len(rate), 1)), rate])
