"""One section of ``metrics.json``: figures, their intervals, and why some are undefined."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.evaluation.bootstrap import (
    Resamples,
    weighted_average_precision,
    weighted_roc_auc,
)
from wsi_pipeline.evaluation.delong import METHOD as DELONG
from wsi_pipeline.evaluation.delong import delong_auc
from wsi_pipeline.evaluation.intervals import (
    Interval,
    Undefined,
    by_class,
    percentile_interval,
    share_interval,
)
from wsi_pipeline.evaluation.patch import ranking_figures
from wsi_pipeline.evaluation.slide import SlideThreshold


@dataclass
class Figures:
    """One section as it grows."""

    values: dict[str, Any]
    undefined: dict[str, str] = field(default_factory=dict)

    def add(self, figures: dict[str, float | None], undefined: dict[str, str]) -> None:
        """Add figures, and the reasons of those that are None."""
        self.values |= figures
        self.undefined |= undefined

    def add_share(self, name: str, part: int, whole: int, reason: str) -> None:
        """Add ``part / whole``, or None and why there is nothing to take a share of."""
        self.values[name] = part / whole if whole else None
        if not whole:
            self.undefined[name] = reason

    def add_interval(self, name: str, interval: Interval | Undefined) -> None:
        """Add ``<name>_ci95`` and its method, or the reason why there is none."""
        key = f"{name}_ci95"
        if name in self.undefined or isinstance(interval, Undefined):
            self.values[key] = None
            known = interval.reason if isinstance(interval, Undefined) else ""
            self.undefined[key] = self.undefined.get(name, known)
            return
        self.values[key] = [interval.low, interval.high]
        self.values.setdefault("ci95_method", {})[name] = interval.method


def add_ranking(
    section: Figures,
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    resamples: Resamples | None,
    *,
    what: str,
) -> None:
    """Add ROC AUC and average precision with intervals, and DeLong's interval of the AUC.

    Parameters
    ----------
    labels : (S,) 1 or 0
    scores : (S,)
    resamples : Resamples, optional
        Of these rows; None: no intervals.
    what : str
        Plural noun for the reasons, such as ``slides``.
    """
    section.add(*ranking_figures(labels, scores, what=what))
    if resamples is None:
        section.values["roc_auc_ci95"] = None
        section.undefined["roc_auc_ci95"] = "no bootstrap was asked for"
    else:
        add_ranking_intervals(section, labels, scores, resamples, what=what)
    result = delong_auc(labels, scores)
    section.add_interval(
        "roc_auc_delong",
        result if isinstance(result, Undefined) else Interval(result.low, result.high, DELONG),
    )


def add_ranking_intervals(
    section: Figures,
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    resamples: Resamples,
    *,
    what: str,
) -> None:
    """Add ``roc_auc_ci95`` and ``average_precision_ci95`` to figures that are there.

    Parameters
    ----------
    section : Figures
        Holds ``roc_auc`` and ``average_precision``, None where undefined.
    labels, scores : (S,)
    resamples : Resamples
        Of these rows.
    what : str
        Plural noun for the reasons, such as ``slides``.
    """
    kinds = by_class(labels, what)
    for name, figure in (
        ("roc_auc", weighted_roc_auc),
        ("average_precision", weighted_average_precision),
    ):
        if section.values[name] is None:
            section.add_interval(name, Undefined(section.undefined[name]))
            continue
        values = figure(labels, scores, resamples.weights)
        section.add_interval(name, percentile_interval(values, resamples, kinds=kinds))


def add_threshold_figures(
    section: Figures,
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    threshold: SlideThreshold | None,
    resamples: Resamples | None,
    *,
    what: str,
) -> None:
    """Add accuracy, sensitivity and specificity at a threshold, with intervals.

    Parameters
    ----------
    labels, scores, resamples
        See `add_ranking`.
    threshold : SlideThreshold, optional
        None: nothing gives one.
    what : str
        Singular noun for the reasons, such as ``slide``.
    """
    names = ("accuracy", "sensitivity", "specificity")
    section.values["threshold"] = threshold.value if threshold else None
    section.values["threshold_source"] = threshold.source if threshold else None
    if threshold is None:
        reason = "validation slides cannot choose a threshold, and none is set"
        section.add(dict.fromkeys(names), dict.fromkeys(("threshold", *names), reason))
        return
    right = ((scores >= threshold.value) == (labels == 1)).astype(np.int64)
    positive, negative = (labels == 1).astype(np.int64), (labels == 0).astype(np.int64)
    for name, whole, reason in (
        ("accuracy", positive + negative, f"no {what} has a score"),
        ("sensitivity", positive, f"no tumour {what}"),
        ("specificity", negative, f"no normal {what}"),
    ):
        section.add_share(name, int((right * whole).sum()), int(whole.sum()), reason)
        if resamples is not None:
            section.add_interval(name, share_interval(right * whole, whole, resamples))
