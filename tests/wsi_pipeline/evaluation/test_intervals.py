"""Intervals: percentiles, shares by patient, paired differences, and where there is none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from wsi_pipeline.evaluation.bootstrap import (
    Resamples,
    draw_resamples,
    weighted_ratio,
    weighted_roc_auc,
)
from wsi_pipeline.evaluation.intervals import (
    MIN_GROUPS,
    Interval,
    Undefined,
    compare_paired,
    percentile_interval,
    replicated_share_interval,
    share_interval,
    wilson_interval,
)

Z = 1.959963984540054


def apart(n, replicates=200):
    return draw_resamples([str(i) for i in range(n)], n_replicates=replicates, seed=0)


# ------------------------------------------------------------ percentiles


def test_the_interval_is_the_percentiles_of_what_is_defined():
    values = np.append(np.arange(101) / 100, [np.nan, np.nan])
    interval = percentile_interval(values, apart(5))
    assert (interval.low, interval.high) == pytest.approx((0.025, 0.975))
    assert interval.method == "percentile bootstrap by patient"


@pytest.mark.parametrize("n", [1, 3, MIN_GROUPS - 1])
def test_few_patients_have_no_bootstrap_interval(n):
    """Resampling three patients gives one of ten sets: its percentiles are those three."""
    values = np.random.default_rng(0).random(200)
    people = "1 patient" if n == 1 else f"{n} patients"
    reason = f"{people}, at least 5 are needed"
    assert percentile_interval(values, apart(n)) == Undefined(reason)


def test_many_slides_of_few_patients_are_few():
    drawn = draw_resamples([f"p{i % 3}" for i in range(60)], n_replicates=50, seed=0)
    found = percentile_interval(np.random.default_rng(0).random(50), drawn)
    assert found == Undefined("3 patients, at least 5 are needed")


def test_a_class_of_one_patient_has_no_bootstrap_interval():
    """The one tumour slide is never resampled: the interval would hold the normal ones alone."""
    kinds = {"positive slides": np.arange(20) == 0, "negative slides": np.arange(20) > 0}
    found = percentile_interval(np.random.default_rng(0).random(200), apart(20), kinds=kinds)
    assert found == Undefined("positive slides of 1 patient only, at least 2 are needed")


@pytest.mark.parametrize("n_other", [0, 4])
def test_resampled_sets_that_agree_show_nothing(n_other):
    """A perfect ROC AUC on five slides had the interval [1.000, 1.000]."""
    values = np.append(np.ones(200 - n_other), np.linspace(0.9, 1.1, n_other))
    share = "95% or more of the" if n_other else "all"
    reason = f"{share} 200 resampled sets give the same value"
    assert percentile_interval(values, apart(50)) == Undefined(reason)


def test_an_undefined_figure_has_no_interval():
    found = percentile_interval(np.full(3, np.nan), apart(50, 3))
    assert found == Undefined("undefined in every resampled set")


# ------------------------------------------------------------ paired differences


def test_a_model_against_itself_differs_by_nothing():
    values = np.random.default_rng(0).random(99)
    same = compare_paired(values, values, apart(9), difference=0.0)
    assert (same.interval, same.p_value) == (
        Undefined("all 99 resampled sets give the same value"),
        1,
    )


def test_a_better_model_has_the_smallest_p_that_there_can_be():
    values, other = np.random.default_rng(0).random((2, 199))
    better = compare_paired(values + 1.1, other, apart(9), difference=1.1)
    assert better.p_value == pytest.approx(2 / 200)
    assert better.interval.low > 0
    worse = compare_paired(other, values + 1.1, apart(9), difference=-1.1)
    assert worse.p_value == better.p_value


def test_the_same_difference_in_every_set_is_no_evidence():
    """A perfect model against one that is always wrong, on five slides: p was 2 / (B + 1)."""
    found = compare_paired(np.ones(99), np.zeros(99), apart(9), difference=1.0)
    assert found.p_value == found.interval == Undefined("all 99 resampled sets give the same value")


def test_few_patients_have_no_p_value():
    values = np.random.default_rng(0).random((2, 99))
    found = compare_paired(*values, apart(3), difference=0.1)
    assert found.p_value == Undefined("3 patients, at least 5 are needed")


def test_pairs_with_an_undefined_side_are_skipped():
    first, second = np.array([1, np.nan, 3]), np.array([1, 1, np.nan])
    found = compare_paired(first, second, apart(9), difference=0)
    assert (found.n_used, found.n_skipped) == (1, 2)
    none = compare_paired(np.array([np.nan]), np.array([1.0]), apart(9), difference=0)
    assert none.p_value == none.interval == Undefined("undefined in every resampled set")


# ------------------------------------------------------------ shares


@settings(max_examples=80)
@given(n=st.integers(1, 400), data=st.data())
def test_wilson_inverts_the_score_test(n, data):
    """Its ends are the shares from which the one observed is z standard errors away."""
    x = data.draw(st.integers(0, n))
    share = x / n
    low, high = wilson_interval(share, n)
    assert 0 <= low <= share <= high <= 1

    for end in (low, high):
        assert (share - end) ** 2 == pytest.approx(Z**2 * end * (1 - end) / n, abs=1e-12)
    assert low < share or x == 0
    assert share < high or x == n


def test_a_share_of_single_slides_is_wilsons():
    """Newcombe, Statistics in Medicine 1998;17:857-872, table I: 81 of 263 and 15 of 148."""
    for x, n, ends in ((81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605))):
        found = share_interval(np.arange(n) < x, np.ones(n, int), apart(n, 1))
        assert (found.low, found.high) == pytest.approx(ends, abs=5e-5)
        assert found.method == "Wilson"


@pytest.mark.parametrize("right", [0, 1])
def test_all_right_on_five_slides_is_no_certainty(right):
    """Sensitivity 1.000 on five slides had the interval [1.000, 1.000]."""
    found = share_interval(np.full(5, right), np.ones(5, int), apart(5))
    ends = sorted(abs(right - end) for end in (found.low, found.high))
    assert ends == pytest.approx([0, 0.4345], abs=1e-4)


def effective_by_hand(x, n):
    """Rao and Scott's effective sample size, scaled as Korn and Graubard do."""
    p, k = x.sum() / n.sum(), len(n)
    variance = k / (k - 1) * sum((a - p * b) ** 2 for a, b in zip(x, n, strict=True))
    units = min(n.sum(), p * (1 - p) * n.sum() ** 2 / variance)
    return units * (Z / student.ppf(0.975, k - 1)) ** 2


@pytest.mark.parametrize("seed", range(5))
def test_patches_of_a_patient_count_as_fewer(seed):
    random = np.random.default_rng(seed)
    whole = random.integers(50, 400, 8)
    part = random.binomial(whole, random.beta(4, 2, 8))
    found = share_interval(part, whole, apart(8))
    units = effective_by_hand(part, whole)
    expected = wilson_interval(part.sum() / whole.sum(), units)
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.method == "Wilson, effective sample size by patient"
    naive = wilson_interval(part.sum() / whole.sum(), whole.sum())
    assert found.high - found.low > 3 * (naive[1] - naive[0])


def test_where_nothing_varies_each_patient_is_one_unit():
    """150,000 patches of 5 patients, all right, are no more than 5 patients that were right."""
    whole = np.full(5, 30_000)
    found = share_interval(whole, whole, apart(5))
    assert (found.low, found.high) == pytest.approx(wilson_interval(1, 5))
    one_large = np.array([100_000, 10, 10, 10, 10])
    assert share_interval(one_large, one_large, apart(5)).low < 0.25


def test_slides_of_one_patient_have_no_interval():
    drawn = draw_resamples(["p"] * 6, n_replicates=20, seed=0)
    found = share_interval(np.array([1, 0, 1, 1, 1, 0]), np.ones(6, int), drawn)
    assert found == Undefined("1 patient, at least 2 are needed")
    rare = share_interval(np.array([3, 0, 0, 0, 0]), np.array([4, 0, 0, 0, 0]), apart(5))
    assert rare == Undefined("only 1 of 5 patients counts, at least 2 are needed")


def test_the_order_and_the_names_of_slides_do_not_matter():
    random = np.random.default_rng(0)
    whole, group = random.integers(1, 9, 12), random.integers(0, 6, 12)
    part = random.binomial(whole, 0.6)
    order = random.permutation(12)
    weights = np.ones((1, 12), int)
    one = share_interval(part, whole, Resamples(weights, group))
    other = share_interval(part[order], whole[order], Resamples(weights, 9 - group[order]))
    assert (one.low, one.high) == pytest.approx((other.low, other.high))


def test_a_threshold_that_varies_widens_the_interval():
    whole, drawn = np.full(12, 3), apart(12, 400)
    part = np.array([3, 2, 2, 3, 1, 2, 3, 2, 1, 3, 2, 2])
    steady = weighted_ratio(part, whole, drawn.weights)
    fixed = share_interval(part, whole, drawn)
    same = replicated_share_interval(26 / 36, steady, whole, drawn)
    assert (same.low, same.high) == pytest.approx((fixed.low, fixed.high), abs=0.03)
    noise = np.random.default_rng(0).normal(0, 0.15, 400)
    wider = replicated_share_interval(26 / 36, np.clip(steady + noise, 0, 1), whole, drawn)
    assert wider.high - wider.low > 1.2 * (fixed.high - fixed.low)


# ------------------------------------------------------------ coverage


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("correlation", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("n_patients", [3, 5, 10, 30])
def test_intervals_of_shares_cover_the_truth(share, correlation, n_patients):
    """Studies of beta-binomial patients; percentile bootstraps cover from 0.51 to 0.95 of them."""
    random = np.random.default_rng(n_patients)
    n_studies, covered = 400, 0
    drawn = apart(n_patients, 1)
    for _ in range(n_studies):
        rate = np.full(n_patients, share)
        if correlation:
            a = (1 - correlation) / correlation
            rate = random.beta(share * a, (1 - share) * a, n_patients)
        whole = random.integers(5, 40, n_patients)
        found = share_interval(random.binomial(whole, rate), whole, drawn)
        assert isinstance(found, Interval)
        covered += found.low <= share <= found.high
    assert covered / n_studies >= (0.82 if correlation > 0.1 else 0.9)


@pytest.mark.slow
@pytest.mark.parametrize("n_slides", [20, 60])
def test_percentile_intervals_of_the_auc_cover_the_truth(n_slides):
    """Two normal distributions one standard deviation apart: AUC 0.7602."""
    random = np.random.default_rng(n_slides)
    labels = np.arange(n_slides) % 2
    kinds = {"positive slides": labels == 1, "negative slides": labels == 0}
    found = []
    for study in range(300):
        names = [str(i) for i in range(n_slides)]
        drawn = draw_resamples(names, n_replicates=300, seed=study)
        values = weighted_roc_auc(labels, random.normal(labels), drawn.weights)
        found.append(percentile_interval(values, drawn, kinds=kinds))
    known = [i for i in found if isinstance(i, Interval)]
    assert len(known) == len(found)
    assert np.mean([i.low <= 0.7602 <= i.high for i in known]) >= 0.88
