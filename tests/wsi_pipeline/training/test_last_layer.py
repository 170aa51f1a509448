"""The convex fit of a prototype network's last layer against independent solvers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from wsi_pipeline.errors import TrainingError
from wsi_pipeline.training.last_layer import fit_last_layer, measure_kkt

CLASSES = np.array([0, 0, 1, 1])


def draw(seed=0, images=60, spread=1.0, classes=CLASSES):
    """Similarities in [0, 9.2], slightly higher to prototypes of the image's class."""
    random = np.random.default_rng(seed)
    labels = np.arange(images) % 2
    values = random.uniform(0, 4, (images, len(classes)))
    return values + spread * (labels[:, None] == classes), labels


def as_published(classes=CLASSES):
    """+1 to the own class, -0.5 to the other."""
    return np.where(np.arange(2)[:, None] == classes, 1.0, -0.5)


def cross_entropy(weights, similarities, labels):
    """By its definition, over both outputs."""
    logs = log_softmax(similarities @ weights.T, axis=1)
    return -logs[np.arange(len(labels)), labels].mean()


def gradient_of(weights, similarities, labels):
    errors = softmax(similarities @ weights.T, axis=1) - np.eye(2)[labels]
    return errors.T @ similarities / len(labels)


def solve_by_bounds(similarities, labels, classes, l1):
    """Minimise by L-BFGS-B, each weight as a difference of two that are not negative."""
    shape = (2, len(classes))
    penalised = np.arange(2)[:, None] != classes

    def value(parts):
        plus, minus = parts.reshape(2, *shape)
        slope = gradient_of(plus - minus, similarities, labels)
        penalty = l1 * (plus + minus)[penalised].sum()
        slopes = [slope + l1 * penalised, -slope + l1 * penalised]
        return cross_entropy(plus - minus, similarities, labels) + penalty, np.ravel(slopes)

    bounds = [(0, None)] * (2 * penalised.size)
    options = {"maxiter": 10_000, "ftol": 1e-15, "gtol": 1e-9}
    start = np.zeros(2 * penalised.size)
    return minimize(value, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).fun


@pytest.mark.parametrize("l1", [0.0, 1e-4, 0.05])
def test_the_objective_is_that_of_a_generic_solver(l1):
    similarities, labels = draw()
    fit = fit_last_layer(similarities, labels, CLASSES, as_published(), l1=l1)
    assert fit.converged
    assert fit.reason == ""
    assert fit.objective == pytest.approx(
        solve_by_bounds(similarities, labels, CLASSES, l1), abs=1e-6
    )
    penalty = l1 * np.abs(fit.weights[np.arange(2)[:, None] != CLASSES]).sum()
    assert fit.objective == pytest.approx(
        cross_entropy(fit.weights, similarities, labels) + penalty, abs=1e-12
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_two_starts_give_one_objective_and_meet_the_conditions(seed):
    random = np.random.default_rng(seed)
    classes = random.integers(0, 2, 5)
    similarities, labels = draw(seed, spread=0.5, classes=classes)
    starts = (as_published(classes), random.normal(0, 2, (2, 5)))
    fits = [fit_last_layer(similarities, labels, classes, start) for start in starts]
    assert all(fit.converged for fit in fits)
    assert fits[0].objective == pytest.approx(fits[1].objective, abs=1e-6)
    for fit in fits:
        slope = gradient_of(fit.weights, similarities, labels)
        for k, j in np.ndindex(2, 5):
            weight = fit.weights[k, j]
            if classes[j] == k:
                assert abs(slope[k, j]) <= 1e-4
            elif weight == 0:
                assert abs(slope[k, j]) <= 1e-4 + 1e-4  # l1 and the tolerance
            else:
                assert slope[k, j] == pytest.approx(-1e-4 * np.sign(weight), abs=1e-4)


def test_weights_to_the_other_class_are_zero_at_a_minimum():
    """With two classes they can move to the own one, where they cost nothing."""
    similarities, labels = draw()
    fit = fit_last_layer(similarities, labels, CLASSES, as_published())
    assert (fit.weights[np.arange(2)[:, None] != CLASSES] == 0).all()


@pytest.mark.parametrize(
    ("gradient", "weight", "penalised", "violation"),
    [
        (0.3, 2.0, False, 0.3),
        (-0.1, 2.0, True, 0.0),  # -l1 sign(w)
        (0.1, 2.0, True, 0.2),
        (0.1, -2.0, True, 0.0),
        (0.1, 0.0, True, 0.0),
        (-0.25, 0.0, True, 0.15),
    ],
)
def test_the_violation_follows_the_conditions(gradient, weight, penalised, violation):
    arrays = [np.array([[value], [0.0]]) for value in (gradient, weight)]
    marked = np.array([[penalised], [True]])
    assert measure_kkt(*arrays, marked, 0.1) == pytest.approx(violation)


def test_separable_classes_stop_at_the_limit_and_say_why():
    similarities, labels = draw(spread=8.0)
    fit = fit_last_layer(similarities, labels, CLASSES, as_published(), max_steps=300)
    assert not fit.converged
    assert fit.steps == 300
    assert fit.reason == (
        "the last layer stopped at its limit of 300 steps: its weights separate the classes of all "
        "60 training images, and since weights to a prototype's own class are not penalised, "
        "larger ones always lower the cross-entropy; there is no finite minimiser"
    )
    assert np.isfinite(fit.weights).all()
    further = fit_last_layer(similarities, labels, CLASSES, fit.weights, max_steps=300)
    assert further.objective < fit.objective


def test_a_limit_that_is_too_low_is_reported():
    similarities, labels = draw()
    fit = fit_last_layer(similarities, labels, CLASSES, as_published(), max_steps=3)
    assert not fit.converged
    assert "limit of 3 steps, where the optimality conditions are violated by" in fit.reason
    assert fit.reason.endswith("allow more steps")


def test_the_same_input_gives_the_same_bytes():
    similarities, labels = draw()
    one, two = (fit_last_layer(similarities, labels, CLASSES, as_published()) for _ in range(2))
    assert one.weights.tobytes() == two.weights.tobytes()


def test_a_start_at_the_minimum_is_left_as_it_is():
    similarities, labels = draw()
    fit = fit_last_layer(similarities, labels, CLASSES, as_published())
    again = fit_last_layer(similarities, labels, CLASSES, fit.weights)
    assert again.steps == 0
    assert again.weights.tobytes() == fit.weights.tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"similarities": np.full((60, 4), np.nan)},
            "240 of 240 similarities to prototypes are no",
        ),
        ({"similarities": np.zeros((60, 3))}, r"got shapes \(60, 3\), \(60,\) and \(4,\)"),
        ({"similarities": np.zeros((0, 4)), "labels": np.zeros(0, int)}, r"got shapes \(0, 4\)"),
        ({"labels": np.full(60, -1)}, r"labels must be 0 or 1, got \[-1\]"),
        ({"prototype_class": np.array([0, 1, 2, 1])}, r"classes of prototypes must be 0 or 1, got"),
        ({"start": np.zeros((4, 2))}, r"finite weights \(2, 4\), got \(4, 2\)"),
        ({"l1": -1.0}, "at least 0, got l1=-1.0"),
        ({"max_steps": 0}, "at least 1 step, got tolerance=0.0001, max_steps=0"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, message):
    similarities, labels = draw()
    given_ = {
        "similarities": similarities,
        "labels": labels,
        "prototype_class": CLASSES,
        "start": as_published(),
    } | change
    with pytest.raises(TrainingError, match=message):
        fit_last_layer(**given_)


def test_collinear_similarities_converge_in_few_steps():
    """Of prototypes that are almost one another: 20,000 steps without a change of coordinates."""
    random = np.random.default_rng(3)
    labels = np.arange(24) % 2
    shared = 2 + 0.5 * labels + 0.1 * random.normal(size=24)
    similarities = shared[:, None] + 0.01 * random.normal(size=(24, 4))
    labels[1] = 0
    assert np.linalg.cond(similarities) > 100
    starts = (as_published(), random.normal(0, 20, (2, 4)))
    fits = [fit_last_layer(similarities, labels, CLASSES, start) for start in starts]
    assert all(fit.converged for fit in fits)
    assert np.abs(fits[0].weights).max() > 30
    assert max(fit.steps for fit in fits) < 1000
    assert fits[0].objective == pytest.approx(fits[1].objective, abs=1e-6)


def test_prototypes_that_are_one_part_of_an_image_share_a_weight():
    """Their similarities are equal, so that only the sum of their weights is determined."""
    similarities, labels = draw()
    twice = np.concatenate([similarities, similarities[:, :1]], axis=1)
    classes = np.append(CLASSES, CLASSES[0])
    fit = fit_last_layer(twice, labels, classes, as_published(classes))
    once = fit_last_layer(similarities, labels, CLASSES, as_published())
    assert fit.objective == pytest.approx(once.objective, abs=1e-6)
    assert fit.weights[:, 0] == pytest.approx(fit.weights[:, 4], abs=1e-9)
