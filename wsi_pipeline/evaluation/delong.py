"""ROC AUC with DeLong's variance: a second opinion on the bootstrap, without resampling.

The formula takes the slides as independent. Where the classes are separated without an error its
variance is 0 however few slides there are: then there is neither an interval nor a test.

References
----------
.. [1] E. R. DeLong, D. M. DeLong, D. L. Clarke-Pearson, Biometrics 1988;44:837-845.
.. [2] X. Sun, W. Xu, IEEE Signal Processing Letters 2014;21:1389-1393 (midranks).
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from wsi_pipeline.evaluation.intervals import CONFIDENCE, Undefined

METHOD = "DeLong"
_NO_VARIANCE = 1e-15  # rounding leaves less


@dataclass(frozen=True)
class DelongAuc:
    """An AUC with its normal interval, cut to [0, 1]."""

    auc: float
    variance: float
    low: float
    high: float


def delong_auc(
    labels: NDArray[np.int64], scores: NDArray[np.float64], *, confidence: float = CONFIDENCE
) -> DelongAuc | Undefined:
    """Compute the ROC AUC, its variance and interval.

    Parameters
    ----------
    labels : (S,) 1 or 0
    scores : (S,)

    Returns
    -------
    result : DelongAuc
        Undefined with fewer than two of a class, and where the variance is 0.
    """
    auc, covariance = _auc_and_covariance(labels, scores[None])
    if covariance is None:
        return Undefined("DeLong's variance needs two of each class")
    if covariance[0, 0] <= _NO_VARIANCE:
        return Undefined(f"the ROC AUC is {auc[0]:g}, where DeLong's variance is 0")
    spread = NormalDist().inv_cdf(0.5 + confidence / 2) * math.sqrt(covariance[0, 0])
    value = float(auc[0])
    return DelongAuc(
        value, float(covariance[0, 0]), max(0.0, value - spread), min(1.0, value + spread)
    )


def delong_p_value(
    labels: NDArray[np.int64], first: NDArray[np.float64], second: NDArray[np.float64]
) -> float | Undefined:
    """Test whether two models' AUC on the same slides differ.

    Returns
    -------
    p : in [0, 1]
        Two-sided; 1 where both rank alike. Undefined with fewer than two of a class, and where
        the AUC differ but DeLong's variance of the difference is 0.
    """
    auc, covariance = _auc_and_covariance(labels, np.stack([first, second]))
    if covariance is None:
        return Undefined("DeLong's variance needs two of each class")
    gap = float(auc[0] - auc[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if variance <= _NO_VARIANCE:  # the two never disagree, or always in one way
        return 1.0 if abs(gap) < 1e-12 else Undefined("DeLong's variance of the difference is 0")
    return 2 * NormalDist().cdf(-abs(gap) / math.sqrt(variance))


def _auc_and_covariance(
    labels: NDArray[np.int64], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Compute AUC and their covariance for M models: scores (M, S) -> (M,), (M, M) or None."""
    positive = scores[:, labels == 1]
    negative = scores[:, labels == 0]
    m, n = positive.shape[1], negative.shape[1]
    if m < 2 or n < 2:
        return np.zeros(len(scores)), None
    together = rankdata(np.hstack([positive, negative]), axis=1)
    # Share of the other class that each score beats, ties one half.
    v10 = (together[:, :m] - rankdata(positive, axis=1)) / n  # (M, m)
    v01 = 1 - (together[:, m:] - rankdata(negative, axis=1)) / m  # (M, n)
    covariance = np.atleast_2d(np.cov(v10)) / m + np.atleast_2d(np.cov(v01)) / n
    auc: NDArray[np.float64] = v10.mean(axis=1)
    return auc, covariance
