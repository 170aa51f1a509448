"""One score for a slide from its patches' scores, and the threshold that makes it a yes or a no.

Aggregators, with the formula of each:

- ``max``: the largest patch score (lecture, attempt 1: positive iff some patch has F(I) >= t);
- ``mean``: the mean;
- ``top_k``: the mean of the k largest (of all, where there are fewer);
- ``mean_pool_max``: each patch takes the mean over itself and those of its eight neighbours on the
  grid that were scored; the largest of these means. One hot patch among cold ones counts less;
- ``span``: the largest minus the smallest score: how much a slide differs within itself.

Unreadable patches (NaN) count in none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from tiling.wording import pluralize
from wsi_pipeline.config.settings import Aggregator
from wsi_pipeline.contracts import Rule
from wsi_pipeline.errors import EvaluationError


def aggregate_scores(
    scores: NDArray[np.floating[Any]],
    coords: NDArray[np.int64],
    *,
    how: Aggregator,
    top_k: int = 10,
) -> float | None:
    """Make one score of a slide's patch scores.

    Parameters
    ----------
    scores : (N,) in [0, 1]
        NaN = unreadable.
    coords : (N, 2), level-0 px
        Used by ``mean_pool_max`` only.

    Returns
    -------
    score : in [0, 1]
        None if no patch was scored.

    Raises
    ------
    EvaluationError
        If the aggregator is not known, or `top_k` is less than one.
    """
    known = ~np.isnan(scores)
    values = scores[known].astype(np.float64)
    if how not in get_args(Aggregator):
        known = ", ".join(get_args(Aggregator))
        raise EvaluationError(f"unknown aggregator '{how}'; one of {known}")
    if top_k < 1:
        raise EvaluationError(f"top_k must be at least 1, got {top_k}")
    if not values.size:
        return None
    if how == "max":
        return float(values.max())
    if how == "mean":
        return float(values.mean())
    if how == "top_k":
        return float(np.sort(values)[-top_k:].mean())
    if how == "span":
        return float(values.max() - values.min())
    return float(pool_neighbours(values, coords[known]).max())


def pool_neighbours(scores: NDArray[np.float64], coords: NDArray[np.int64]) -> NDArray[np.float64]:
    """Average each patch with its neighbours on the grid, as far as there are any.

    Parameters
    ----------
    scores : (N,) without NaN
    coords : (N, 2), level-0 px
        On a grid; its step along each axis is the smallest gap there is.

    Returns
    -------
    pooled : (N,)

    Examples
    --------
    >>> pool_neighbours(np.array([0.0, 0.6, 1.0]), np.array([[0, 0], [9, 0], [18, 0]])).round(2)
    array([0.3 , 0.53, 0.8 ])
    """
    cell = np.stack([_grid_index(coords[:, axis]) for axis in (0, 1)], axis=1)
    # Room for a missing neighbour on each side, so that rows do not run into each other.
    width = int(cell[:, 0].max()) + 3
    key = (cell[:, 1] + 1) * width + cell[:, 0] + 1
    order = np.argsort(key)
    total, count = np.zeros(scores.size), np.zeros(scores.size)
    for shift in (dy * width + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
        at = np.minimum(np.searchsorted(key[order], key + shift), key.size - 1)
        there = key[order[at]] == key + shift
        total[there] += scores[order[at[there]]]
        count += there
    return total / count


def _grid_index(position: NDArray[np.int64]) -> NDArray[np.int64]:
    distinct = np.unique(position)
    step = int(np.diff(distinct).min()) if distinct.size > 1 else 1
    index: NDArray[np.int64] = np.rint((position - distinct[0]) / step).astype(np.int64)
    return index


# ------------------------------------------------------------ threshold


@dataclass(frozen=True)
class SlideThreshold(Rule):
    """A threshold on slide scores and where it comes from."""

    source: str = ""  # a sentence


def choose_threshold(
    labels: Sequence[int] | NDArray[np.int64], scores: Sequence[float] | NDArray[np.float64]
) -> float | None:
    """Choose the threshold with the largest sum of sensitivity and specificity (Youden's J).

    Candidates lie midway between neighbouring distinct scores. Of equally good ones the one in the
    widest gap is taken, as it is the safest on new slides; of equally wide ones the highest.

    Parameters
    ----------
    labels : (S,) 1 or 0
    scores : (S,)

    Returns
    -------
    threshold : float
        None where a class is missing, or all scores are equal: nothing can be chosen.

    Examples
    --------
    >>> choose_threshold([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])
    0.5
    """
    label, score = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    distinct = np.unique(score)
    if np.unique(label).size < 2 or distinct.size < 2:
        return None
    middle = (distinct[1:] + distinct[:-1]) / 2
    predicted = score >= middle[:, None]
    sensitivity = predicted[:, label == 1].mean(axis=1)
    specificity = 1 - predicted[:, label == 0].mean(axis=1)
    # Rounded: equal shares may differ in their last bit.
    merit = np.round(sensitivity + specificity, 12)
    best = np.lexsort((middle, np.diff(distinct), merit))[-1]
    return float(middle[best])


def freeze_threshold(
    labels: Sequence[int],
    scores: Sequence[float],
    *,
    fixed: float | None,
    fallback: float | None,
) -> SlideThreshold | None:
    """Choose the threshold without the test slides.

    Parameters
    ----------
    labels, scores : (S,)
        Of the validation slides.
    fixed : float, optional
        Threshold in the settings; takes precedence.
    fallback : float, optional
        Used if the validation slides do not determine a threshold.

    Returns
    -------
    threshold : SlideThreshold
        None if nothing gives one.
    """
    if fixed is not None:
        return SlideThreshold(fixed, source="given in the settings")
    chosen = choose_threshold(labels, scores)
    if chosen is not None:
        slides = pluralize(len(labels), "validation slide")
        source = f"largest sensitivity + specificity on {slides}"
        return SlideThreshold(chosen, source=source)
    if fallback is None or not math.isfinite(fallback):
        return None
    few = pluralize(len(labels), "validation slide")
    source = f"the patches' threshold, since {few} cannot choose one"
    return SlideThreshold(fallback, source=source)
