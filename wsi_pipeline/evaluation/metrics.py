"""Every metric of decisions and of rankings, in two lists.

A metric is a function and a line in `SHARES` or `RANKINGS`. All else follows from the lists: the
values of ``metrics.json`` and the reasons where one is undefined, intervals, the columns of the
threshold sweep, what two models are compared by, the rows of the reports and of docs/evaluate.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.contracts import Rule
from wsi_pipeline.evaluation.bootstrap import (
    Resamples,
    weighted_average_precision,
    weighted_ratio,
    weighted_roc_auc,
)
from wsi_pipeline.evaluation.intervals import (
    Interval,
    Undefined,
    percentile_interval,
    share_interval,
)
from wsi_pipeline.evaluation.ranking import PairCounts, replicate_patch_auc

Section = Literal["patch", "image", "slide", "patient", "metastasis", "sweep"]
ALL: tuple[Section, ...] = ("patch", "image", "slide", "patient", "sweep")
COMPARED: tuple[Section, ...] = ("patch", "image", "slide")
Labels = NDArray[np.integer[Any]]
Values = NDArray[np.float64]
ReplicatePooled = Callable[[PairCounts, NDArray[np.int64]], Values]


@dataclass(frozen=True)
class Level:
    """What is decided on, as sections and reasons name it."""

    section: Section
    unit: str  # singular
    units: str  # plural
    positive: str
    negative: str
    nothing: str  # the reason where no unit counts


PATCH = Level("patch", "patch", "patches", "positive patch", "negative patch", "no labelled patch")
IMAGE = Level("image", "image", "images", "positive image", "negative image", "no labelled image")
SLIDE = Level("slide", "slide", "slides", "tumour slide", "normal slide", "no slide has a score")
PATIENT = Level(
    "patient", "patient", "patients", "tumour patient", "normal patient", "no patient has a score"
)


# ------------------------------------------------------------ confusion

Counts = TypeVar("Counts", int, NDArray[np.int64])


@dataclass(frozen=True)
class Confusion(Generic[Counts]):
    """Counts of decisions: numbers, or an array (S,) with a number for each row."""

    tp: Counts
    fp: Counts
    fn: Counts
    tn: Counts

    @property
    def n(self) -> Counts:
        """How many were counted."""
        return self.tp + self.fp + self.fn + self.tn


Rows = Confusion[NDArray[np.int64]]


def decide_each(labels: Labels, scores: NDArray[np.floating[Any]], rule: Rule) -> Rows:
    """Return each unit's place in the confusion: 1 there, 0 elsewhere.

    Parameters
    ----------
    labels : (N,) 1, 0, -1
        Those of -1 are nowhere.
    scores : (N,)
        NaN (unreadable) are nowhere.
    """
    predicted, known = rule.decide(scores), ~np.isnan(scores)
    positive, negative = known & (labels == 1), known & (labels == 0)
    cells = (
        positive & predicted,
        negative & predicted,
        positive & ~predicted,
        negative & ~predicted,
    )
    return Confusion(*(cell.astype(np.int64) for cell in cells))


def count_confusion(
    labels: Labels, scores: NDArray[np.floating[Any]], rule: Rule
) -> Confusion[int]:
    """Count decisions; see `decide_each`.

    Examples
    --------
    >>> labels, scores = np.array([1, 1, 0, 0, -1]), np.array([0.75, 0.2, 0.9, 0.1, 0.9])
    >>> count_confusion(labels, scores, Rule(0.75))
    Confusion(tp=1, fp=1, fn=1, tn=1)
    """
    return add_up(decide_each(labels, scores, rule))


def add_up(rows: Rows) -> Confusion[int]:
    """Sum the counts of all rows."""
    return Confusion(*(int(cell.sum()) for cell in (rows.tp, rows.fp, rows.fn, rows.tn)))


def stack(confusions: Sequence[Confusion[int]]) -> Rows:
    """Make each confusion, of a slide for example, a row."""
    cells = np.array([(c.tp, c.fp, c.fn, c.tn) for c in confusions], np.int64)
    return Confusion(*cells.reshape(-1, 4).T)


# ------------------------------------------------------------ shares


@dataclass(frozen=True)
class Share:
    """A metric of decisions: a part of a confusion over a whole."""

    name: str  # in metrics.json
    title: str  # in reports
    count: Callable[[Confusion[Any]], tuple[Any, Any]]  # part, whole; its docstring is the meaning
    undefined: str  # why, where the whole is 0; the names of a `Level` in braces
    sections: tuple[Section, ...] = ALL
    compared: tuple[Section, ...] = COMPARED
    # False: its whole counts some units twice, so it has no Wilson interval but a bootstrap's.
    of_units: bool = True

    @property
    def interval_method(self) -> str:
        """Kind of its interval, as the docs name it."""
        return "Wilson" if self.of_units else "bootstrap"

    @property
    def meaning(self) -> str:
        """What it is, in a sentence."""
        return _first_line(self.count)

    def compute(self, confusion: Confusion[int]) -> float | None:
        """Compute the share; None where there is nothing to take a share of."""
        part, whole = self.count(confusion)
        return part / whole if whole else None

    def explain(self, level: Level) -> str:
        """Return the reason where it is undefined."""
        return self.undefined.format(**vars(level))

    def replicate(self, rows: Rows, weights: NDArray[np.int64]) -> Values:
        """Compute it on each replicate: weights (B, S) -> (B,), NaN where undefined."""
        return weighted_ratio(*self.count(rows), weights)

    def interval(self, rows: Rows, resamples: Resamples) -> Interval | Undefined:
        """Compute its 95 % interval by patient."""
        if self.of_units:
            return share_interval(*self.count(rows), resamples)
        return percentile_interval(self.replicate(rows, resamples.weights), resamples)


def accuracy(c: Confusion[Any]) -> tuple[Any, Any]:
    """Share of decisions that are right."""
    return c.tp + c.tn, c.n


def precision(c: Confusion[Any]) -> tuple[Any, Any]:
    """Share of positive decisions that are right."""
    return c.tp, c.tp + c.fp


def recall(c: Confusion[Any]) -> tuple[Any, Any]:
    """Share of positives that are found."""
    return c.tp, c.tp + c.fn


def specificity(c: Confusion[Any]) -> tuple[Any, Any]:
    """Share of negatives that are decided negative."""
    return c.tn, c.tn + c.fp


def f1(c: Confusion[Any]) -> tuple[Any, Any]:
    """Harmonic mean of precision and recall."""
    return 2 * c.tp, 2 * c.tp + c.fp + c.fn


_OF_MANY: tuple[Section, ...] = ("patch", "image", "sweep")
_OF_FEW: tuple[Section, ...] = ("slide", "patient")
_NO_F1 = "no {unit} is positive or predicted positive"

SHARES = (
    Share("accuracy", "accuracy", accuracy, "{nothing}", compared=("image",)),
    Share("precision", "precision", precision, "no {unit} is predicted positive", _OF_MANY, ()),
    Share("recall", "recall (sensitivity)", recall, "no {positive}", _OF_MANY, ()),
    Share("sensitivity", "sensitivity", recall, "no {positive}", (*_OF_FEW, "metastasis"), ()),
    Share("specificity", "specificity", specificity, "no {negative}", (*_OF_FEW, "sweep"), ()),
    Share("f1", "F1", f1, _NO_F1, _OF_MANY, (), of_units=False),
)


# ------------------------------------------------------------ rankings


@dataclass(frozen=True)
class Ranking:
    """A metric of scores, for which no threshold is needed."""

    name: str
    title: str
    compute: Callable[[Labels, Values], float]  # its docstring is the meaning
    # On each replicate: labels (S,), scores (S,), weights (B, S) -> (B,), NaN where undefined.
    replicate: Callable[[NDArray[np.int64], Values, NDArray[np.int64]], Values]
    # The same of the patches of all slides together; None: no interval on patches.
    replicate_pooled: ReplicatePooled | None = None
    sections: tuple[Section, ...] = ALL[:-1]
    compared: tuple[Section, ...] = COMPARED[1:]
    interval_method = "bootstrap"

    @property
    def meaning(self) -> str:
        """What it is, in a sentence."""
        return _first_line(self.compute)


def roc_auc(labels: Labels, scores: Values) -> float:
    """Probability that a positive scores higher than a negative; ties count one half."""
    from sklearn.metrics import roc_auc_score  # half a second that FROC does not need

    return float(roc_auc_score(labels, scores))


def average_precision(labels: Labels, scores: Values) -> float:
    """Mean of the precision at each threshold, weighted by the gain in recall."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(labels, scores))


RANKINGS = (
    Ranking(
        "roc_auc", "ROC AUC", roc_auc, weighted_roc_auc, replicate_patch_auc,
        (*ALL[:-1], "metastasis"), COMPARED,
    ),
    Ranking("average_precision", "average precision", average_precision,
            weighted_average_precision),
)  # fmt: skip


def ranking_figures(
    level: Level, labels: Labels, scores: Values
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Compute the rankings of a section.

    Parameters
    ----------
    level : Level
    labels : (N,) 1 or 0
    scores : (N,)

    Returns
    -------
    figures : dict
        None where undefined.
    undefined : dict
        Why.
    """
    rankings = rankings_of(level.section)
    n_positive, n = int(np.count_nonzero(labels == 1)), labels.size
    if 0 < n_positive < n:
        return {ranking.name: ranking.compute(labels, scores) for ranking in rankings}, {}
    kind = "positive" if n_positive else "negative"
    reason = f"all {n} {level.units} are {kind}" if n else f"no labelled {level.units}"
    names = [ranking.name for ranking in rankings]
    return dict.fromkeys(names), dict.fromkeys(names, reason)


Metric = Share | Ranking


def _first_line(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").partition("\n")[0].rstrip(".")


# ------------------------------------------------------------ by section


def shares_of(section: Section) -> list[Share]:
    """List the shares of a section, in the order of `SHARES`."""
    return [share for share in SHARES if section in share.sections]


def rankings_of(section: Section) -> list[Ranking]:
    """List the rankings of a section."""
    return [ranking for ranking in RANKINGS if section in ranking.sections]


def titles_of(section: Section) -> dict[str, str]:
    """Return the rows of a report: name -> title, rankings first."""
    metrics: list[Metric] = [*rankings_of(section), *shares_of(section)]
    return {metric.name: metric.title for metric in metrics}


def compared_shares(section: Section) -> list[Share]:
    """List the shares that models are compared by."""
    return [share for share in SHARES if section in share.compared]


def compared_rankings(section: Section) -> list[Ranking]:
    """List the rankings that models are compared by."""
    return [ranking for ranking in RANKINGS if section in ranking.compared]


def compared_titles(level: Level) -> dict[str, str]:
    """Return the rows of a comparison: name -> title."""
    metrics: list[Metric] = [*compared_shares(level.section), *compared_rankings(level.section)]
    return {metric.name: f"{metric.title} of {level.units}" for metric in metrics}
