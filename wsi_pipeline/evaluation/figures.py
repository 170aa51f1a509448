"""One section of ``metrics.json``: figures, their intervals, and why some are undefined."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.evaluation.bootstrap import (
    Interval,
    percentile_interval,
    weighted_average_precision,
    weighted_ratio,
    weighted_roc_auc,
)
from wsi_pipeline.evaluation.delong import delong_auc
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

    def add_interval(self, name: str, interval: Interval | None) -> None:
        """Add ``<name>_ci95``, with the reason where there is none."""
        ends = [interval.low, interval.high] if interval else None
        self.values[f"{name}_ci95"] = ends
        if ends is None:
            reason = self.undefined.get(name, "undefined in every replicate")
            self.undefined[f"{name}_ci95"] = reason


def add_ranking(
    section: Figures,
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    weights: NDArray[np.int64] | None,
    *,
    what: str,
) -> None:
    """Add ROC AUC and average precision with intervals, and DeLong's interval of the AUC.

    Parameters
    ----------
    labels : (S,) 1 or 0
    scores : (S,)
    weights : (B, S), optional
        Replicates; None: no intervals.
    what : str
        Plural noun for the reasons, such as ``slides``.
    """
    section.add(*ranking_figures(labels, scores, what=what))
    if weights is None:
        section.values["roc_auc_ci95"] = None
        section.undefined["roc_auc_ci95"] = "no bootstrap: not asked for, or one patient only"
    else:
        add_ranking_intervals(section, labels, scores, weights)
    result = delong_auc(labels, scores)
    section.values["roc_auc_delong_ci95"] = [result.low, result.high] if result else None
    if result is None:
        reason = f"DeLong's variance needs two {what} of each class"
        section.undefined["roc_auc_delong_ci95"] = reason


def add_ranking_intervals(
    section: Figures,
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    weights: NDArray[np.int64],
) -> None:
    """Add ``roc_auc_ci95`` and ``average_precision_ci95`` beside figures that are there.

    Parameters
    ----------
    section : Figures
        Holds ``roc_auc`` and ``average_precision``, None where undefined.
    labels, scores : (S,)
    weights : (B, S)
        How often each replicate holds each row.
    """
    for name, figure in (
        ("roc_auc", weighted_roc_auc),
        ("average_precision", weighted_average_precision),
    ):
        defined = section.values[name] is not None
        values = figure(labels, scores, weights) if defined else None
        section.add_interval(name, None if values is None else percentile_interval(values))


def add_threshold_figures(
    section: Figures,
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    threshold: SlideThreshold | None,
    weights: NDArray[np.int64] | None,
    *,
    what: str,
) -> None:
    """Add accuracy, sensitivity and specificity at a threshold, with intervals.

    Parameters
    ----------
    labels, scores, weights
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
        if weights is not None:
            values = weighted_ratio(right * whole, whole, weights)
            section.add_interval(name, percentile_interval(values))
