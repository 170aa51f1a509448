"""Confidence bands against curves drawn one replicate at a time."""

import numpy as np
from sklearn.metrics import roc_curve

from wsi_pipeline.evaluation.bands import ROC_GRID, pointwise_band, roc_band
from wsi_pipeline.evaluation.bootstrap import draw_weights


def test_a_roc_band_is_that_of_the_replicates_drawn_one_by_one():
    random = np.random.default_rng(3)
    labels = [random.integers(0, 2, 12) for _ in range(6)]
    scores = [np.round(random.random(12) * 0.7 + 0.3 * label, 2) for label in labels]
    weights = draw_weights(6, n_replicates=40, seed=1)
    curves = []
    for row in weights:
        drawn = np.repeat(np.arange(6), row)
        fpr, tpr, _ = roc_curve(
            np.concatenate([labels[i] for i in drawn]),
            np.concatenate([scores[i] for i in drawn]),
            drop_intermediate=False,
        )
        # Of several points at one rate the highest counts at the rate itself.
        curves.append([max(tpr[fpr == g]) if (fpr == g).any() else np.interp(g, fpr, tpr)
                       for g in ROC_GRID])  # fmt: skip
    low, high = np.quantile(np.array(curves), [0.025, 0.975], axis=0)
    band = roc_band(labels, scores, weights)
    np.testing.assert_allclose(band, np.stack([ROC_GRID, low, high], axis=1), atol=1e-12)


def test_thinned_thresholds_hardly_move_the_band():
    random = np.random.default_rng(0)
    labels = [random.integers(0, 2, 500) for _ in range(5)]
    scores = [random.normal(label) for label in labels]
    weights = draw_weights(5, n_replicates=30, seed=1)
    full = roc_band(labels, scores, weights, max_thresholds=10_000)
    thin = roc_band(labels, scores, weights, max_thresholds=300)
    assert np.abs(full - thin).max() < 0.02


def test_one_class_has_no_band():
    weights = draw_weights(2, n_replicates=5, seed=0)
    ones = [np.ones(3, int), np.ones(2, int)]
    assert roc_band(ones, [np.zeros(3), np.ones(2)], weights) is None


def test_undefined_replicates_are_left_out():
    curves = np.array([[0.0, 1.0], [np.nan, 0.5], [0.5, 1.0]])
    low, high = pointwise_band(curves, confidence=0.999999)
    np.testing.assert_allclose([low, high], [[0, 1], [0.5, 1]], atol=1e-6)
    assert pointwise_band(np.full((3, 2), np.nan)) is None
