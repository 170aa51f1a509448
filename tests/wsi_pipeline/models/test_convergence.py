"""The closed form of appendix A against a numeric minimiser and finite differences."""

import pytest
from scipy.optimize import minimize_scalar

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.convergence import toy_gradient, toy_loss, toy_optimum

COUNTS = [(a, b) for a in (1, 2, 3, 5, 12, 48) for b in (1, 2, 3, 5, 16)]


@pytest.mark.parametrize(("a", "b"), COUNTS)
def test_the_closed_form_is_where_a_minimiser_ends(a, b):
    for p1 in (1.0, 0.982, 0.6):
        found = minimize_scalar(
            lambda p0, p1=p1: toy_loss(p0, p1, a=a, b=b),
            bounds=(0, 1 - 1e-9),
            method="bounded",
            options={"xatol": 1e-10},
        ).x
        assert found == pytest.approx(toy_optimum(a, b, p1=p1), abs=1e-6)


@pytest.mark.parametrize(("a", "b"), COUNTS)
def test_the_loss_falls_with_p1_everywhere(a, b):
    losses = [toy_loss(toy_optimum(a, b), p1 / 10, a=a, b=b) for p1 in range(1, 11)]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(("a", "b"), COUNTS)
def test_both_derivatives_are_those_of_finite_differences(a, b):
    h = 1e-6
    for p0, p1 in ((0.2, 0.9), (0.7, 0.3), (0.5, 0.5)):
        by_hand = (
            (toy_loss(p0 + h, p1, a=a, b=b) - toy_loss(p0 - h, p1, a=a, b=b)) / (2 * h),
            (toy_loss(p0, p1 + h, a=a, b=b) - toy_loss(p0, p1 - h, a=a, b=b)) / (2 * h),
        )
        assert toy_gradient(p0, p1, a=a, b=b) == pytest.approx(by_hand, rel=1e-6)


def test_the_papers_derivative_mended_is_ours():
    """a = 3b: +(6 p0 + p1 - 3) / ((1 - p0)(3 p0 + p1)); as printed its sign and root differ."""
    for p0, p1 in ((0.1, 0.95), (0.4, 0.8), (1 / 3, 1.0)):
        mended = (6 * p0 + p1 - 3) / ((1 - p0) * (3 * p0 + p1))
        assert toy_gradient(p0, p1, a=3, b=1)[0] == pytest.approx(mended, abs=1e-12)


def test_the_papers_example_is_one_third():
    assert toy_optimum(16384 - 4096, 4096) == pytest.approx(1 / 3, abs=1e-12)


def test_at_the_optimum_the_class_1_image_is_a_coin_toss_where_black_prevails():
    for a, b in COUNTS:
        p0 = toy_optimum(a, b)
        image = (a * p0 + b) / (a + b)
        assert image == pytest.approx(0.5) if a > b else image >= 0.5


def test_counts_that_are_none_are_refused():
    with pytest.raises(ModelError, match="a must be above 0"):
        toy_optimum(0, 1)
