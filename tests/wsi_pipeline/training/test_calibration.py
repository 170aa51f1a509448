"""Calibration: figures by hand, and a temperature that is known."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from wsi_pipeline.training.calibration import (
    apply_temperature,
    calibration_figures,
    fit_logit_temperature,
    fit_temperature,
    reliability_curve,
)


def synthetic(temperature, n=20_000, seed=0):
    """Labels drawn by true probabilities, and scores that are too sure by `temperature`."""
    random = np.random.default_rng(seed)
    logits = random.normal(-0.5, 1.5, n)
    labels = (random.random(n) < expit(logits)).astype(np.int8)
    return labels, expit(logits * temperature)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_recovered(temperature):
    labels, scores = synthetic(temperature)
    assert fit_temperature(labels, scores).value == pytest.approx(temperature, rel=0.05)


def test_scaling_mends_the_calibration_and_never_the_ranking():
    labels, scores = synthetic(3.0)
    fitted = fit_temperature(labels, scores).value
    scaled = apply_temperature(scores, fitted)
    before, after = calibration_figures(labels, scores), calibration_figures(labels, scaled)
    assert after.ece < 0.02 < before.ece
    assert after.nll < before.nll
    assert after.brier < before.brier
    assert roc_auc_score(labels, scaled) == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)


def test_the_figures_are_those_of_scikit_learn():
    labels, scores = synthetic(2.0, n=500)
    figures = calibration_figures(labels, scores)
    assert figures.brier == pytest.approx(brier_score_loss(labels, scores))
    assert figures.nll == pytest.approx(log_loss(labels, scores))


def test_the_error_is_weighted_by_the_bins_counts():
    labels = np.array([1, 0, 0, 0, 1])
    scores = np.array([0.9, 0.9, 0.1, 0.1, 1.0])
    # Upper bin: 3 patches, mean 14/15, share 2/3; lower bin: mean 0.1, share 0.
    expected = (3 * abs(2 / 3 - 2.8 / 3) + 2 * 0.1) / 5
    curve = reliability_curve(labels, scores, n_bins=2)
    assert curve.count.tolist() == [2, 3]
    assert calibration_figures(labels, scores).ece == pytest.approx(
        (2 * 0.1 + 2 * 0.4 + 1 * 0.0) / 5
    )
    assert float(
        (np.abs(curve.positive_share - curve.mean_score) * curve.count).sum() / 5
    ) == pytest.approx(expected)


def test_empty_bins_are_empty_and_no_patch_has_no_figures():
    curve = reliability_curve(np.array([1]), np.array([0.99]))
    assert curve.count.sum() == 1
    assert np.isnan(curve.mean_score).sum() == 14
    assert calibration_figures(np.zeros(0, np.int8), np.zeros(0)) is None


@pytest.mark.parametrize(
    ("labels", "scores", "reason"),
    [
        ([], [], "no labelled validation patch"),
        ([1, 1], [0.2, 0.4], "all validation patches (2) are positive"),
        ([0, 1], [0.2, 0.8], "without an error"),
        ([1, 0], [0.2, 0.8], "no better than chance"),
    ],
)
def test_what_gives_no_temperature_says_why(labels, scores, reason):
    fitted = fit_temperature(np.array(labels, np.int8), np.array(scores))
    assert fitted.value is None
    assert reason in fitted.reason


def test_scores_at_the_ends_do_no_harm():
    labels, scores = synthetic(2.0, n=2000)
    scores[:4] = [0, 0, 1, 1]
    labels[:4] = [0, 1, 0, 1]
    assert np.isfinite(fit_temperature(labels, scores.astype(np.float32)).value)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("temperature", [0.2, 1.0, 6.0])
def test_the_temperature_of_logits_is_the_minimum_that_an_optimiser_finds(temperature, seed):
    labels, scores = synthetic(1.0, n=300, seed=seed)
    logits = np.log(scores / (1 - scores)) * temperature

    def loss(log_temperature):
        return log_loss(labels, expit(logits / np.exp(log_temperature)))

    found = minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9})
    fitted = fit_logit_temperature(labels, logits)
    assert fitted == pytest.approx(np.exp(found.x), rel=1e-5)
    grid = np.linspace(-2.9, 2.9, 400)
    assert loss(np.log(fitted)) <= min(map(loss, grid)) + 1e-12


@pytest.mark.parametrize(
    ("labels", "logits", "temperature"),
    [
        ([], [], None),
        ([0, 0], [-1.0, 2.0], None),
        ([1, 1], [-1.0, 2.0], None),
        ([0, 1], [-800.0, 900.0], 0.05),
        ([1, 0], [-1.0, 2.0], 20.0),
        ([1, 0, 0, 1], [-900.0, -900.0, 900.0, 900.0], 20.0),
    ],
    ids=["none", "negative", "positive", "separable", "reversed", "chance"],
)
def test_the_temperature_of_logits_has_bounds(labels, logits, temperature):
    assert fit_logit_temperature(np.array(labels, np.int8), np.array(logits)) == temperature


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_a_temperature_outside_the_bounds_becomes_the_nearer_bound(scale):
    labels, scores = synthetic(1.0, n=300)
    fitted = fit_logit_temperature(labels, np.log(scores / (1 - scores)) * scale)
    assert fitted == (0.05 if scale < 1 else 20.0)
