"""How sure a figure is: 95 % intervals, and the reason where there is none.

Every interval of the package is made here, in one of three ways; the result records which.

- A **share** (accuracy, sensitivity, specificity, precision, recall, lesion sensitivity at a rate)
  has Wilson's score interval [1]_. Where a patient contributes several units (slides, patches,
  lesions), they are not independent: Wilson's formula then gets the *effective* number of units,
  the one at which independent units would vary as much as the patients do [2]_, scaled by
  ``(z / t)**2`` since few patients estimate the variance poorly [3]_. Where the share is 0 or 1
  nothing varies, so each patient is taken as a single unit, the most dependent that units can be.
- Any **other figure** (ROC AUC, average precision, F1, FROC score, differences) has the percentile
  interval of resampled patients [4]_.
- The ROC AUC of slides also has DeLong's interval: `wsi_pipeline.evaluation.delong`.

There is no interval, but a reason, where the patients show nothing about others: for a bootstrap,
with fewer than `MIN_GROUPS` patients, with a class that a single one makes up, or where the
resampled sets all give one value, as for a perfect ROC AUC, so that the interval would have no
width; for a share of several units by patient, where they are of one patient.

References
----------
.. [1] E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA
   1927;22:209-212.
.. [2] J. N. K. Rao, A. J. Scott, "A simple method for the analysis of clustered binary data",
   Biometrics 1992;48:577-585 (design effect, effective sample size).
.. [3] E. L. Korn, B. I. Graubard, "Confidence intervals for proportions with small expected number
   of positive counts estimated from survey data", Survey Methodology 1998;24:193-201. They put the
   effective number into Clopper and Pearson's interval, we into Wilson's; at 0 and 1 they keep the
   plain number of units.
.. [4] B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from wsi_pipeline.evaluation.bootstrap import Resamples

CONFIDENCE = 0.95
# Five patients make 126 distinct resampled sets, four only 35: a tail of 2.5 % is less than one.
MIN_GROUPS = 5
MIN_OF_EACH_KIND = 2  # patients with each class, with lesions, with units of a share

_SAME = 1e-12  # replicates closer than this differ by rounding only

Kinds = Mapping[str, NDArray[np.bool_]]  # plural noun, such as "positive slides": (S,) which rows


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float
    method: str  # as it is written to metrics.json


@dataclass(frozen=True)
class Undefined:
    """Why there is no interval, or no p-value."""

    reason: str


@dataclass(frozen=True)
class PairedComparison:
    """Two models on the same replicates."""

    difference: float  # first - second, on the slides as they are
    interval: Interval | Undefined
    p_value: float | Undefined  # two-sided
    n_used: int
    n_skipped: int

    def to_json(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Format it as in ``comparison.json``, with what is undefined: ``.<key>`` -> reason."""
        interval = None if isinstance(self.interval, Undefined) else self.interval
        values = {
            "difference": self.difference,
            "difference_ci95": [interval.low, interval.high] if interval else None,
            "method": interval.method if interval else None,
            "p_value": None if isinstance(self.p_value, Undefined) else self.p_value,
            "n_used": self.n_used,
            "n_skipped": self.n_skipped,
        }
        both = {"difference_ci95": self.interval, "p_value": self.p_value}
        return values, {f".{k}": v.reason for k, v in both.items() if isinstance(v, Undefined)}


def no_comparison(n_replicates: int, reason: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Format a figure that a model does not have as `PairedComparison.to_json` does: all None."""
    values = dict.fromkeys(("difference", "difference_ci95", "method", "p_value"))
    return values | {"n_used": 0, "n_skipped": n_replicates}, {"": reason}


def by_class(labels: NDArray[np.int64], what: str) -> Kinds:
    """Find the rows of both classes, which a figure that ranks them needs.

    Examples
    --------
    >>> list(by_class(np.array([1, 0]), "slides"))
    ['positive slides', 'negative slides']
    """
    return {f"positive {what}": labels == 1, f"negative {what}": labels == 0}


# ------------------------------------------------------------ resampled figures


def find_shortage(resamples: Resamples, kinds: Kinds | None = None) -> str:
    """Explain why there are too few patients to resample; empty where there are enough.

    Parameters
    ----------
    resamples : Resamples
        Of the rows that the figure is computed on.
    kinds : plural noun -> (S,) bool, optional
        Rows of which the figure needs at least one, for example each class.

    Examples
    --------
    >>> slides = Resamples(np.ones((1, 6), int), np.array([0, 0, 1, 1, 2, 2]), "patient")
    >>> find_shortage(slides)
    '3 patients, at least 5 are needed'
    """
    if resamples.n_groups < MIN_GROUPS:
        return f"{resamples.describe()}, at least {MIN_GROUPS} are needed"
    for noun, rows in (kinds or {}).items():
        part = resamples.take(rows)
        if part.n_groups < MIN_OF_EACH_KIND:
            return f"{noun} of {part.describe()} only, at least {MIN_OF_EACH_KIND} are needed"
    return ""


def percentile_interval(
    values: NDArray[np.float64], resamples: Resamples, *, kinds: Kinds | None = None
) -> Interval | Undefined:
    """Take the interval that holds the middle share of the replicates.

    Parameters
    ----------
    values : (B,)
        The figure on each replicate; NaN where it is undefined: those are skipped.
    resamples : Resamples
        What the replicates were drawn from: the rows that the figure is computed on.
    kinds
        See `find_shortage`.
    """
    used = values[~np.isnan(values)]
    if not used.size:
        return Undefined("undefined in every resampled set")
    shortage = find_shortage(resamples, kinds)
    if shortage:
        return Undefined(shortage)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(used, [tail, 1 - tail])
    if high - low <= _SAME:
        share = "all" if np.ptp(used) <= _SAME else f"{CONFIDENCE:.0%} or more of the"
        return Undefined(f"{share} {used.size} resampled sets give the same value")
    method = f"percentile bootstrap by {resamples.unit}"
    return Interval(float(low), float(high), method)


def compare_paired(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    resamples: Resamples,
    *,
    difference: float,
    kinds: Kinds | None = None,
) -> PairedComparison:
    """Compare two models' figures on the same replicates.

    Parameters
    ----------
    first, second : (B,)
        NaN where undefined.
    resamples, kinds
        See `percentile_interval`.
    difference : float
        First minus second, on the slides as they are.

    Returns
    -------
    comparison : PairedComparison
        `p_value` is twice the smaller share of replicates on either side of no difference, ties on
        both sides; with B replicates it is never below 2 / (B + 1). Where the two never differ it
        is 1. Where there is no interval for another reason, there is no p-value either.
    """
    gaps = first - second
    used = gaps[~np.isnan(gaps)]
    interval = percentile_interval(gaps, resamples, kinds=kinds)
    p_value: float | Undefined
    if isinstance(interval, Undefined) and not _shows_no_difference(used, resamples, kinds):
        p_value = interval
    else:
        rarer = min(np.count_nonzero(used <= _SAME), np.count_nonzero(used >= -_SAME))
        p_value = min(1.0, 2 * (1 + rarer) / (used.size + 1))
    return PairedComparison(difference, interval, p_value, used.size, gaps.size - used.size)


def _shows_no_difference(
    gaps: NDArray[np.float64], resamples: Resamples, kinds: Kinds | None
) -> bool:
    """Whether patients enough were resampled and there is no difference in most of the sets."""
    if not gaps.size or find_shortage(resamples, kinds):
        return False
    return bool(abs(np.median(gaps)) <= _SAME)


# ------------------------------------------------------------ shares


def wilson_interval(share: float, n: float) -> tuple[float, float]:
    """Compute Wilson's score interval of a share of `n` independent units.

    Parameters
    ----------
    share : in [0, 1]
    n : > 0
        Need not be a whole number.

    Examples
    --------
    >>> [round(end, 4) for end in wilson_interval(0.8, 10)]
    [0.4902, 0.9433]
    """
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    centre = share + z**2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    scale = 1 + z**2 / n
    # Rounding must not put an end beyond the share itself, where the two are equal.
    low, high = (centre - half) / scale, (centre + half) / scale
    return max(0.0, min(low, share)), min(1.0, max(high, share))


def share_interval(
    part: NDArray[np.int64], whole: NDArray[np.int64], resamples: Resamples
) -> Interval | Undefined:
    """Compute the interval of ``part.sum() / whole.sum()``, by patient.

    Parameters
    ----------
    part, whole : (S,)
        Counts of each row, for example of a slide: its true positives, its positives.
    resamples : Resamples
        Of these rows; which of them belong to one patient.
    """
    x, n = resamples.sum_groups(part), resamples.sum_groups(whole)
    x, n = x[n > 0], n[n > 0]
    if not n.size:
        return Undefined("nothing to take a share of")
    share = float(x.sum() / n.sum())
    # The variance of a ratio of sums over patients, to first order (Rao and Scott 1992).
    spread = float(((x - share * n) ** 2).sum())
    variance = spread / float(n.sum()) ** 2 * n.size / max(n.size - 1, 1)
    return _wilson_by_group(share, variance, n, resamples, one_each=bool((n == 1).all()))


def replicated_share_interval(
    share: float,
    replicates: NDArray[np.float64],
    whole: NDArray[np.int64],
    resamples: Resamples,
) -> Interval | Undefined:
    """Compute the interval of a share whose threshold depends on the data as well.

    The sensitivity at a rate of false positives is one: the replicates hold how much it varies,
    its threshold included.

    Parameters
    ----------
    share : in [0, 1]
    replicates : (B,)
        The share on each replicate; NaN where it is undefined.
    whole : (S,)
        Units of each row that the share is of, for example lesions.
    """
    used = replicates[~np.isnan(replicates)]
    n = resamples.sum_groups(whole)
    n = n[n > 0]
    if not used.size or not n.size:
        return Undefined("undefined in every resampled set")
    if shortage := find_shortage(resamples):
        return Undefined(shortage)
    one_each = bool((n == 1).all()) and n.size < MIN_GROUPS
    variance = float(used.var()) * n.size / max(n.size - 1, 1)
    return _wilson_by_group(share, variance, n, resamples, one_each=one_each)


def _wilson_by_group(
    share: float, variance: float, n: NDArray[np.int64], resamples: Resamples, *, one_each: bool
) -> Interval | Undefined:
    """Wilson's interval with the effective number of units; `n` (K,) units of each group."""
    total = float(n.sum())
    if one_each:
        return Interval(*wilson_interval(share, total), "Wilson")
    if n.size < MIN_OF_EACH_KIND:
        units = resamples.describe()
        if n.size < resamples.n_groups:
            units = f"only {n.size} of {units} counts"
        return Undefined(f"{units}, at least {MIN_OF_EACH_KIND} are needed")
    if share <= _SAME or share >= 1 - _SAME:
        effective = total**2 / float((n.astype(np.float64) ** 2).sum())
    else:
        effective = min(total, share * (1 - share) / max(variance, 1e-300))
        z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
        effective *= (z / float(stdtrit(n.size - 1, 0.5 + CONFIDENCE / 2))) ** 2
    method = f"Wilson, effective sample size by {resamples.unit}"
    return Interval(*wilson_interval(share, effective), method)
