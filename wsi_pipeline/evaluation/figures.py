"""One section of ``metrics.json``: figures, their intervals, and why some are undefined."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.contracts import Rule
from wsi_pipeline.evaluation.bootstrap import Resamples
from wsi_pipeline.evaluation.delong import METHOD as DELONG
from wsi_pipeline.evaluation.delong import delong_auc
from wsi_pipeline.evaluation.intervals import (
    Interval,
    Kinds,
    Undefined,
    by_class,
    percentile_interval,
)
from wsi_pipeline.evaluation.metrics import (
    Confusion,
    Level,
    Share,
    add_up,
    decide_each,
    ranking_figures,
    rankings_of,
    shares_of,
)
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

    def add_share(self, share: Share, confusion: Confusion[int], level: Level) -> None:
        """Add a share, or None and why it is undefined."""
        value = self.values[share.name] = share.compute(confusion)
        if value is None:
            self.undefined[share.name] = share.explain(level)

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
    level: Level,
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    resamples: Resamples | None,
) -> None:
    """Add the rankings with intervals, and DeLong's interval of the ROC AUC.

    Parameters
    ----------
    section : Figures
    level : Level
    labels : (S,) 1 or 0
    scores : (S,)
    resamples : Resamples, optional
        Of these rows; None: no intervals.
    """
    section.add(*ranking_figures(level, labels, scores))
    if resamples is None:
        section.values["roc_auc_ci95"] = None
        section.undefined["roc_auc_ci95"] = "no bootstrap was asked for"
    else:
        kinds = by_class(labels, level.units)
        add_ranking_intervals(section, level, labels, scores, resamples, kinds)
    result = delong_auc(labels, scores)
    section.add_interval(
        "roc_auc_delong",
        result if isinstance(result, Undefined) else Interval(result.low, result.high, DELONG),
    )


def add_ranking_intervals(
    section: Figures,
    level: Level,
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    resamples: Resamples,
    kinds: Kinds,
) -> None:
    """Add the intervals of rankings whose values are in the section.

    Parameters are those of `add_ranking`; `kinds` as of `intervals.find_shortage`.
    """
    for ranking in rankings_of(level.section):
        if section.values[ranking.name] is None:
            section.add_interval(ranking.name, Undefined(section.undefined[ranking.name]))
            continue
        values = ranking.replicate(labels, scores, resamples.weights)
        section.add_interval(ranking.name, percentile_interval(values, resamples, kinds=kinds))


def add_decisions(
    section: Figures,
    level: Level,
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    rule: Rule | None,
    resamples: Resamples | None,
    *,
    no_rule: str,
) -> None:
    """Add the shares of decisions by a rule, each with its interval.

    Parameters are those of `add_ranking`; `no_rule` is the reason where there is no rule.
    """
    shares = shares_of(level.section)
    if rule is None:
        names = [share.name for share in shares]
        section.add(dict.fromkeys(names), dict.fromkeys(names, no_rule))
        return
    rows = decide_each(labels, scores, rule)
    total = add_up(rows)
    for share in shares:
        section.add_share(share, total, level)
        if resamples is not None:
            section.add_interval(share.name, share.interval(rows, resamples))


def add_threshold_figures(
    section: Figures,
    level: Level,
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    threshold: SlideThreshold | None,
    resamples: Resamples | None,
) -> None:
    """Add the threshold on slides' scores and the shares of decisions by it."""
    section.values["threshold"] = threshold.threshold if threshold else None
    section.values["threshold_source"] = threshold.source if threshold else None
    reason = "validation slides cannot choose a threshold, and none is set"
    if threshold is None:
        section.undefined["threshold"] = reason
    add_decisions(section, level, labels, scores, threshold, resamples, no_rule=reason)
