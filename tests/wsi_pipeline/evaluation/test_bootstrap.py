"""Resampling, weighted figures, DeLong."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.bootstrap import (
    draw_resamples,
    weighted_average_precision,
    weighted_ratio,
    weighted_roc_auc,
)
from wsi_pipeline.evaluation.delong import delong_auc, delong_p_value
from wsi_pipeline.evaluation.intervals import Undefined, percentile_interval


def draw_weights(groups, **options):
    return draw_resamples([str(group) for group in groups], **options).weights


def test_each_replicate_has_as_many_slides_as_there_are_and_the_seed_fixes_it():
    weights = draw_weights(range(17), n_replicates=50, seed=3)
    assert weights.shape == (50, 17)
    assert (weights.sum(axis=1) == 17).all()
    assert np.array_equal(weights, draw_weights(range(17), n_replicates=50, seed=3))
    assert not np.array_equal(weights, draw_weights(range(17), n_replicates=50, seed=4))


def test_slides_are_drawn_uniformly():
    weights = draw_weights(range(10), n_replicates=4000, seed=0)
    assert weights.mean(axis=0) == pytest.approx(np.ones(10), abs=0.08)
    assert weights.var() == pytest.approx(0.9, abs=0.03)  # binomial(10, 1/10)


def test_slides_of_one_patient_are_drawn_together():
    patients = ["b", "a", "b", "c", "a", "a"]
    weights = draw_weights(patients, n_replicates=40, seed=0)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [1, 1]] == weights[:, [4, 5]]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()


def test_what_patients_are_called_does_not_change_the_draw():
    a = draw_weights(["p", "q", "q", "r"], n_replicates=9, seed=1)
    b = draw_weights(["z", "a", "a", "m"], n_replicates=9, seed=1)
    assert np.array_equal(a, b)


def test_strata_keep_their_sizes():
    strata = [True] * 3 + [False] * 5
    weights = draw_weights(range(8), n_replicates=60, seed=0, strata=strata)
    assert (weights[:, :3].sum(axis=1) == 3).all()
    assert (weights[:, 3:].sum(axis=1) == 5).all()


def test_a_patient_with_one_tumour_slide_is_in_the_tumour_stratum():
    weights = draw_weights(
        ["a", "a", "b", "c"], n_replicates=60, seed=0, strata=[True, False, False, True]
    )
    assert (weights[:, 2] == 1).all()  # alone in its stratum
    assert (weights[:, [0, 3]].sum(axis=1) == 2).all()


@pytest.mark.parametrize(("n", "replicates"), [(0, 5), (5, 0)])
def test_nothing_to_draw_is_an_error(n, replicates):
    with pytest.raises(EvaluationError, match="at least one"):
        draw_weights(range(n), n_replicates=replicates, seed=0)


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 14))
def test_weighted_figures_equal_scikit_learn_on_repeated_slides(seed, n):
    random = np.random.default_rng(seed)
    labels, scores = random.integers(0, 2, n), random.integers(0, 5, n) / 4
    weights = draw_weights(range(n), n_replicates=6, seed=seed)
    auc = weighted_roc_auc(labels, scores, weights)
    average = weighted_average_precision(labels, scores, weights)
    for row, a, p in zip(weights, auc, average, strict=True):
        truth, value = np.repeat(labels, row), np.repeat(scores, row)
        if np.unique(truth).size == 2:
            assert a == pytest.approx(roc_auc_score(truth, value))
            assert p == pytest.approx(average_precision_score(truth, value))
        else:
            assert np.isnan(a)
            assert np.isnan(p) == (truth[0] == 0)


def test_weighted_ratio_is_undefined_without_a_whole():
    weights = np.array([[2, 0], [0, 2], [1, 1]])
    ratio = weighted_ratio(np.array([3, 0]), np.array([4, 0]), weights)
    assert ratio[[0, 2]].tolist() == [0.75, 0.75]
    assert np.isnan(ratio[1])


def test_rows_are_summed_by_patient_and_kept_apart():
    drawn = draw_resamples(["b", "a", "b", "c"], n_replicates=9, seed=0)
    assert (drawn.n_groups, drawn.describe()) == (3, "3 patients")
    assert sorted(drawn.sum_groups(np.array([1, 2, 3, 4]))) == [2, 4, 4]
    kept = drawn.take(np.array([True, False, True, False]))
    assert (kept.describe(), kept.weights.shape) == ("1 patient", (9, 2))
    assert np.array_equal(kept.weights[:, 0], drawn.weights[:, 0])


# ------------------------------------------------------------ DeLong


def structural(labels, scores):
    """Placement values in plain Python: one for each positive, one for each negative."""
    pos, neg = scores[labels == 1], scores[labels == 0]

    def win(a, b):
        return 1.0 if a > b else 0.5 if a == b else 0.0

    return (
        np.array([np.mean([win(p, q) for q in neg]) for p in pos]),
        np.array([np.mean([win(p, q) for p in pos]) for q in neg]),
    )


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_delong_equals_its_formula(seed):
    random = np.random.default_rng(seed)
    labels = np.array([1, 1, 0, 0, *random.integers(0, 2, 9)])
    first, second = random.integers(0, 6, (2, 13)) / 5
    v10, v01 = structural(labels, first)
    expected = v10.var(ddof=1) / v10.size + v01.var(ddof=1) / v01.size
    found = delong_auc(labels, first)
    if expected < 1e-15:
        assert found == Undefined(f"the ROC AUC is {v10.mean():g}, where DeLong's variance is 0")
        return
    assert found.auc == pytest.approx(roc_auc_score(labels, first))
    assert found.variance == pytest.approx(expected, abs=1e-15)
    w10, w01 = structural(labels, second)
    gap = (v10 - w10).var(ddof=1) / v10.size + (v01 - w01).var(ddof=1) / v01.size
    p = delong_p_value(labels, first, second)
    if gap > 1e-12:
        z = abs(v10.mean() - w10.mean()) / np.sqrt(gap)
        from scipy.stats import norm

        assert p == pytest.approx(2 * norm.sf(z), abs=1e-9)
    elif v10.mean() == pytest.approx(w10.mean()):
        assert p == 1
    else:
        assert isinstance(p, Undefined)


def test_delong_and_bootstrap_agree_on_many_slides():
    random = np.random.default_rng(5)
    labels = np.repeat([0, 1], 150)
    scores = random.normal(labels * 1.0)
    exact = delong_auc(labels, scores)
    drawn = draw_resamples([str(i) for i in range(300)], n_replicates=2000, seed=0)
    interval = percentile_interval(weighted_roc_auc(labels, scores, drawn.weights), drawn)
    assert (interval.low, interval.high) == pytest.approx((exact.low, exact.high), abs=0.01)


def test_delong_needs_two_of_each_class():
    reason = Undefined("DeLong's variance needs two of each class")
    assert delong_auc(np.array([1, 0, 0]), np.array([1.0, 0, 0])) == reason
    assert delong_p_value(np.array([1, 0, 0]), np.zeros(3), np.zeros(3)) == reason


@pytest.mark.parametrize("n", [2, 5, 200])
def test_perfect_separation_has_no_delong_interval_and_no_p_value(n):
    """Its variance is 0 for any number of slides: [1, 1], and p = 0 against every other model."""
    labels = np.repeat([0, 1], n)
    perfect = labels + np.linspace(0, 0.5, 2 * n)
    assert delong_auc(labels, perfect) == Undefined(
        "the ROC AUC is 1, where DeLong's variance is 0"
    )
    assert isinstance(delong_p_value(labels, perfect, 1 - perfect), Undefined)
    assert delong_p_value(labels, perfect, perfect**3) == 1.0


def test_models_that_rank_alike_do_not_differ():
    labels, scores = np.array([1, 1, 0, 0]), np.array([0.9, 0.4, 0.5, 0.1])
    assert delong_p_value(labels, scores, scores**2) == 1.0
