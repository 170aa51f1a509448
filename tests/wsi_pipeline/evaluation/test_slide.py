"""Slide scores and the frozen threshold."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.slide import (
    aggregate_scores,
    choose_threshold,
    freeze_threshold,
    pool_neighbours,
)

COORDS = np.array([[0, 0], [10, 0], [20, 0], [0, 10], [50, 90]])
SCORES = np.array([0.9, 0.5, np.nan, 0.1, 0.6], np.float64)


@pytest.mark.parametrize(
    ("how", "expected"),
    [("max", 0.9), ("mean", 0.525), ("top_k", 0.75), ("mean_pool_max", 0.6), ("span", 0.8)],
)
def test_each_aggregator_by_hand(how, expected):
    assert aggregate_scores(SCORES, COORDS, how=how, top_k=2) == pytest.approx(expected)


@pytest.mark.parametrize("how", ["max", "mean", "top_k", "mean_pool_max", "span"])
def test_a_slide_without_scores_has_none_and_one_patch_is_enough(how):
    nothing = np.full(2, np.nan, np.float32)
    assert aggregate_scores(nothing, COORDS[:2], how=how) is None
    one = aggregate_scores(np.array([0.5]), COORDS[:1], how=how, top_k=9)
    assert one == (0 if how == "span" else 0.5)


def test_an_aggregator_that_is_none_is_refused():
    with pytest.raises(EvaluationError, match="unknown aggregator 'median'; one of max"):
        aggregate_scores(SCORES, COORDS, how="median")
    with pytest.raises(EvaluationError, match="top_k"):
        aggregate_scores(SCORES, COORDS, how="top_k", top_k=0)


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), stride=st.integers(1, 99))
def test_pooling_is_the_mean_over_neighbours_that_are_there(seed, stride):
    random = np.random.default_rng(seed)
    cells = np.unique(random.integers(0, 6, (14, 2)), axis=0)
    cells = np.vstack([cells, [[7, 7], [8, 8]]])  # so that neighbours exist along both axes
    scores = random.random(len(cells))
    expected = [
        np.mean([s for s, p in zip(scores, cells, strict=True) if abs(p - q).max() <= 1])
        for q in cells
    ]
    assert pool_neighbours(scores, cells * stride + 1000) == pytest.approx(expected)


def test_rows_do_not_run_into_each_other():
    """The last patch of a row is no neighbour of the first of the next."""
    coords = np.array([[x, y] for y in (0, 1, 2) for x in (0, 1, 2)])
    scores = np.array([0, 0, 1.0, 0, 0, 0, 0, 0, 0])
    assert pool_neighbours(scores, coords)[3] == 0


# ------------------------------------------------------------ threshold


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.1, 0.3, 0.4, 0.9], 0.65),  # above 0.4 the gap is wider than above 0.1
        ([0.1, 0.6, 0.7, 0.9], 0.35),  # here it is the other way round
        ([0.0, 0.25, 0.5, 0.75], 0.625),  # equally wide: the highest
    ],
)
def test_of_equally_good_thresholds_the_widest_gap_then_the_highest_is_taken(scores, expected):
    """Youden's J is 0.5 at the first and at the last gap."""
    assert choose_threshold([0, 1, 0, 1], scores) == pytest.approx(expected)


def test_the_threshold_lies_in_the_widest_gap_of_the_best():
    assert choose_threshold([0, 0, 1, 1], [0.1, 0.3, 0.9, 0.95]) == pytest.approx(0.6)


def expected_threshold(labels, scores):
    """The rule in exact fractions: largest J, of these the widest gap, of these the highest."""
    distinct = sorted(set(scores))
    if len(set(labels)) < 2 or len(distinct) < 2:
        return None
    found = []
    for low, high in pairwise(distinct):
        middle = (low + high) / 2
        yes = [score >= middle for score in scores]
        tp, fp = (sum(y for y, k in zip(yes, labels, strict=True) if k == kind) for kind in (1, 0))
        j = Fraction(tp, labels.count(1)) - Fraction(fp, labels.count(0))
        found.append((j, high - low, middle))
    return max(found)[2]


SCORED = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 12)), min_size=2, max_size=14)


@settings(max_examples=300)
@given(SCORED)
@example([(1, 2), (0, 3), (1, 8), (0, 0)])  # J = 1/2 at 1/8 and 5.5/8: the wider gap
@example([(0, 0), (1, 6), (0, 7), (1, 8)])  # J = 1/2 at 3/8 and 7.5/8: the wider gap
@example([(1, 0), (1, 8), (0, 9), (0, 1), (1, 10), (0, 2)])  # J = 1/3 at 5/8 and 9.5/8
def test_sensitivity_and_specificity_weigh_the_same(scored):
    """Any other weight of either changes the choice among equal sums, if not the sum."""
    labels, scores = [label for label, _ in scored], [score / 8 for _, score in scored]
    assert choose_threshold(labels, scores) == expected_threshold(labels, scores)


def test_the_size_of_a_class_does_not_weigh():
    """Youden's J is of shares: nine normal slides count as much as one with tumour."""
    labels, scores = [0] * 9 + [1], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.95, 0.75]
    # From 0.725 up: sensitivity 1, specificity 7/9. From 0.975 the accuracy would be higher.
    assert choose_threshold(labels, scores) == pytest.approx(0.725)
    few = ([0, 1, 1, 1, 1], [0.5, 0.4, 0.6, 0.7, 0.8])
    assert choose_threshold(*few) == pytest.approx(0.55)


@pytest.mark.parametrize(("labels", "scores"), [([], []), ([1, 1], [0, 1]), ([0, 1], [0.5, 0.5])])
def test_what_cannot_choose_chooses_nothing(labels, scores):
    assert choose_threshold(labels, scores) is None
    assert freeze_threshold(labels, scores, fixed=None, fallback=None) is None
    assert freeze_threshold(labels, scores, fixed=None, fallback=0.75).threshold == 0.75


def test_settings_win_over_validation():
    assert freeze_threshold([0, 1], [0.1, 0.9], fixed=0.3, fallback=0.75).threshold == 0.3
    assert freeze_threshold([0, 1], [0.1, 0.9], fixed=None, fallback=0.75).threshold == 0.5
