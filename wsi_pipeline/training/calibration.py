"""Calibration of scores: reliability, calibration errors, and temperature scaling.

A model is calibrated where, of the patches scored p, a share p is positive. The temperature T
divides the logits, ``sigmoid(logit / T)``: it changes the confidence of a model but not the ranking
of its patches. It is fitted on the validation split alone: by training on the logits of each
epoch, and by `evaluate` on the scores.

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
_WIDEST = 1000.0  # of scores, temperatures from 0.001 to 1000 are searched
LARGEST_TEMPERATURE = 20.0  # of logits in training; the smallest is its inverse


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
    """Find the temperature of scores under which the labels are likeliest.

    Parameters
    ----------
    labels : (N,) 1 or 0
    scores : (N,) in [0, 1], without NaN
        Of the validation split.
    """
    if not labels.size:
        return Temperature(None, "no labelled validation patch to fit a temperature on")
    value = _likeliest(labels, _logits(scores), largest=_WIDEST)
    if value is None:
        which = "positive" if labels[0] == 1 else "negative"
        return Temperature(None, f"all validation patches ({labels.size}) are {which}")
    if value == _WIDEST:
        return Temperature(None, "the scores rank validation patches no better than chance")
    if value == 1 / _WIDEST:
        return Temperature(None, "the score 0.5 separates the validation patches without an error")
    return Temperature(value)


def fit_logit_temperature(
    labels: NDArray[np.integer[Any]], logits: NDArray[np.floating[Any]]
) -> float | None:
    """Find the temperature of a model's logits under which the labels are likeliest.

    A model's logit is what its `forward` returns: the log-odds of the final score. So one
    definition holds for all models: of a PatchNet the logit of the mean probability of its small
    patches is divided, not the logits of these; of a ProtoPNet the difference of both classes'.

    Parameters
    ----------
    labels : (N,) 1 or 0
    logits : (N,) finite
        Of validation patches.

    Returns
    -------
    temperature : float or None
        From 1/20 to 20. The smallest where the logit 0 separates the classes without an error,
        since a smaller one would always be likelier; the largest where the logits rank them no
        better than chance. None unless there are patches of both classes.

    Examples
    --------
    >>> fit_logit_temperature(np.array([0, 1]), np.array([-1.0, 2.0]))
    0.05
    >>> fit_logit_temperature(np.array([1, 1]), np.array([-1.0, 2.0]))
    """
    return _likeliest(labels, np.asarray(logits, np.float64), largest=LARGEST_TEMPERATURE)


def _likeliest(
    labels: NDArray[np.integer[Any]], z: NDArray[np.float64], *, largest: float
) -> float | None:
    """Find the likeliest temperature from 1 / largest to largest; None without both classes.

    The negative log-likelihood is convex in 1 / T (logistic regression with one weight), so the
    place where its slope is zero is the only one, and a bracketed search finds it.
    """
    positive = (labels == 1).astype(np.float64)
    if not positive.size or positive.min() == positive.max():
        return None

    def slope(log_sharpness: float) -> float:
        return float(np.mean((expit(z * np.exp(log_sharpness)) - positive) * z))

    end = np.log(largest)
    if slope(-end) >= 0:
        return largest
    if slope(end) <= 0:
        return 1 / largest
    return float(np.exp(-brentq(slope, -end, end, xtol=1e-10)))


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
