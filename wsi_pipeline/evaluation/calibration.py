"""Calibration of scores: reliability, calibration errors, and temperature scaling.

A model is calibrated where, of the patches scored p, a share p is positive. The temperature T
divides the logits, ``sigmoid(logit(score) / T)``: it changes the confidence of
a model but not its ranking, so neither ROC AUC nor FROC changes. It is fitted on the validation
split alone.

References
----------
.. [1] C. Guo, G. Pleiss, Y. Sun, K. Weinberger, "On Calibration of Modern Neural Networks", ICML
   2017: expected calibration error in equal bins, temperature scaling. They bin the confidence in
   the predicted class of many; with two classes we bin the score itself.
.. [2] G. Brier, Monthly Weather Review 1950;78:1-3.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit

N_BINS = 15  # equal-width (Guo et al. 2017)

_CLOSEST = 1e-7  # float32 scores come no nearer to 1 than 6e-8: beyond it a logit is rounding
_LARGEST_LOG = np.log(1000.0)  # temperatures from 0.001 to 1000 are searched


@dataclass(frozen=True)
class Reliability:
    """How often patches of like score are positive, by equal-width bins."""

    edges: NDArray[np.float64]  # (K + 1,) from 0 to 1; a bin holds its lower edge, the last both
    count: NDArray[np.int64]  # (K,)
    mean_score: NDArray[np.float64]  # (K,) NaN where a bin is empty
    positive_share: NDArray[np.float64]  # (K,) NaN where a bin is empty


@dataclass(frozen=True)
class CalibrationFigures:
    """How far scores are from probabilities; each figure is better when lower."""

    ece: float  # mean distance of a bin's share of positives from its mean score
    brier: float  # mean squared distance of score and label
    nll: float  # mean negative log-likelihood, nats


@dataclass(frozen=True)
class Temperature:
    """The fitted temperature, or why there is none."""

    value: float | None
    reason: str = ""


def reliability_curve(
    labels: NDArray[np.integer[Any]], scores: NDArray[np.floating[Any]], *, n_bins: int = N_BINS
) -> Reliability:
    """Count patches and positives in equal-width bins of the score.

    Parameters
    ----------
    labels : (N,) 1 or 0
    scores : (N,) in [0, 1], without NaN

    Examples
    --------
    >>> curve = reliability_curve(np.array([0, 1, 1]), np.array([0.1, 0.8, 1.0]), n_bins=2)
    >>> curve.count.tolist(), curve.mean_score.tolist(), curve.positive_share.tolist()
    ([1, 2], [0.1, 0.9], [0.0, 1.0])
    """
    values = np.asarray(scores, dtype=np.float64)
    edges = np.linspace(0, 1, n_bins + 1)
    bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, n_bins - 1)
    count = np.bincount(bins, minlength=n_bins)
    empty = np.full(n_bins, np.nan)
    sums = [np.bincount(bins, weights=part, minlength=n_bins) for part in (values, labels == 1)]
    means = [np.divide(part, count, out=empty.copy(), where=count > 0) for part in sums]
    return Reliability(edges, count, means[0], means[1])


def calibration_figures(
    labels: NDArray[np.integer[Any]], scores: NDArray[np.floating[Any]], *, n_bins: int = N_BINS
) -> CalibrationFigures | None:
    """Compute expected calibration error, Brier score and log-likelihood; None without a patch."""
    if not labels.size:
        return None
    values = np.asarray(scores, dtype=np.float64)
    curve = reliability_curve(labels, values, n_bins=n_bins)
    filled = curve.count > 0
    gaps = np.abs(curve.positive_share - curve.mean_score)[filled]
    positive = labels == 1
    certain = np.clip(np.where(positive, values, 1 - values), _CLOSEST, 1)
    return CalibrationFigures(
        ece=float((gaps * curve.count[filled]).sum() / labels.size),
        brier=float(np.mean((values - positive) ** 2)),
        nll=float(-np.mean(np.log(certain))),
    )


def fit_temperature(
    labels: NDArray[np.integer[Any]], scores: NDArray[np.floating[Any]]
) -> Temperature:
    """Find the temperature under which the labels are likeliest.

    The likelihood is concave in 1 / T (logistic regression with one weight), so the place where its
    slope is zero is the only one, and bisection finds it.

    Parameters
    ----------
    labels : (N,) 1 or 0
    scores : (N,) in [0, 1], without NaN
        Of the validation split.
    """
    if not labels.size:
        return Temperature(None, "no labelled validation patch to fit a temperature on")
    positive = (labels == 1).astype(np.float64)
    if positive.min() == positive.max():
        which = "positive" if positive[0] else "negative"
        return Temperature(None, f"all validation patches ({labels.size}) are {which}")
    z = _logits(scores)

    def slope(log_sharpness: float) -> float:
        return float(np.mean((expit(z * np.exp(log_sharpness)) - positive) * z))

    if slope(-_LARGEST_LOG) >= 0:
        return Temperature(None, "the scores rank validation patches no better than chance")
    if slope(_LARGEST_LOG) <= 0:
        return Temperature(None, "the score 0.5 separates the validation patches without an error")
    return Temperature(float(np.exp(-brentq(slope, -_LARGEST_LOG, _LARGEST_LOG, xtol=1e-10))))


def apply_temperature(scores: NDArray[np.floating[Any]], temperature: float) -> NDArray[np.float64]:
    """Divide the scores' logits by a temperature.

    Examples
    --------
    >>> apply_temperature(np.array([0.2, 0.5, 0.8]), 2.0).round(3).tolist()
    [0.333, 0.5, 0.667]
    """
    scaled: NDArray[np.float64] = expit(_logits(scores) / temperature)
    return scaled


def _logits(scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    z: NDArray[np.float64] = logit(
        np.clip(np.asarray(scores, dtype=np.float64), _CLOSEST, 1 - _CLOSEST)
    )
    return z
