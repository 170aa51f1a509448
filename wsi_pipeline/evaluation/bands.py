"""Confidence bands: the middle share of the replicates' curves, at each place of a grid.

The bands are pointwise: each place holds the stated share of the replicates, the band as a whole
holds fewer whole curves.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.evaluation.bootstrap import CONFIDENCE
from wsi_pipeline.evaluation.froc import read_sensitivity
from wsi_pipeline.evaluation.sweep import count_from, sweep_thresholds

ROC_GRID = np.linspace(0, 1, 101)  # false-positive rates


def pointwise_band(
    curves: NDArray[np.float64], *, confidence: float = CONFIDENCE
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Take the band that holds the middle share of the replicates at each place.

    Parameters
    ----------
    curves : (B, G)
        A replicate with a NaN is undefined and left out.

    Returns
    -------
    low, high : (G,)
        None if every replicate is undefined.
    """
    used = curves[~np.isnan(curves).any(axis=1)]
    if not len(used):
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(used, [tail, 1 - tail], axis=0)
    return low, high


def roc_band(
    labels: Sequence[NDArray[np.integer[Any]]],
    scores: Sequence[NDArray[np.floating[Any]]],
    weights: NDArray[np.int64],
    *,
    max_thresholds: int = 1000,
) -> NDArray[np.float64] | None:
    """Bootstrap a ROC curve over its slides.

    Parameters
    ----------
    labels, scores : one array (N_s,) for each of S slides; labels 1 or 0
    weights : (B, S)
    max_thresholds : int
        The curves are followed at so many of the distinct scores at most.

    Returns
    -------
    band : (G, 3)
        False-positive rate, lowest and highest true-positive rate; None where no replicate has
        both classes.
    """
    thresholds = sweep_thresholds(
        np.concatenate(labels), np.concatenate(scores), max_rows=max_thresholds
    )
    rates = []
    for kind in (1, 0):
        counts = np.stack(
            [
                count_from(s[label == kind], thresholds)
                for label, s in zip(labels, scores, strict=True)
            ]
        )
        total = np.array([np.count_nonzero(label == kind) for label in labels])
        drawn = weights.astype(np.float64)
        above, whole = drawn @ counts, drawn @ total
        rate = np.full(above.shape, np.nan)
        np.divide(above, whole[:, None], out=rate, where=whole[:, None] > 0)
        rates.append(np.hstack([np.zeros((len(rate), 1)), rate]))
    curves = np.full((len(weights), ROC_GRID.size), np.nan)
    for row, (tpr, fpr) in enumerate(zip(*rates, strict=True)):
        if not (np.isnan(tpr).any() or np.isnan(fpr).any()):
            curves[row] = read_sensitivity(fpr, tpr, ROC_GRID.tolist(), at_rate="linear")
    band = pointwise_band(curves)
    return None if band is None else np.stack([ROC_GRID, *band], axis=1)
