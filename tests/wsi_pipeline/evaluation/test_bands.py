"""Confidence bands against curves drawn one replicate at a time."""

import numpy as np
from sklearn.metrics import roc_curve

from wsi_pipeline.evaluation.bands import ROC_GRID, roc_band
from wsi_pipeline.evaluation.bootstrap import draw_resamples
from wsi_pipeline.evaluation.intervals import replicated_share_interval


def test_a_roc_band_is_that_of_the_replicates_drawn_one_by_one():
    random = np.random.default_rng(3)
    labels = [random.integers(0, 2, 12) for _ in range(6)]
    scores = [np.round(random.random(12) * 0.7 + 0.3 * label, 2) for label in labels]
    resamples = draw_resamples("abcdef", n_replicates=40, seed=1)
    curves = []
    for row in [np.ones(6, int), *resamples.weights]:
        drawn = np.repeat(np.arange(6), row)
        fpr, tpr, _ = roc_curve(
            np.concatenate([labels[i] for i in drawn]),
            np.concatenate([scores[i] for i in drawn]),
            drop_intermediate=False,
        )
        # Of several points at one rate the highest counts at the rate itself.
        curves.append([max(tpr[fpr == g]) if (fpr == g).any() else np.interp(g, fpr, tpr)
                       for g in ROC_GRID])  # fmt: skip
    positives = np.array([sum(label == 1) for label in labels])
    as_is, replicates = np.array(curves[0]), np.array(curves[1:])
    found = [
        replicated_share_interval(as_is[k], replicates[:, k], positives, resamples)
        for k in range(100)
    ]
    band = roc_band(labels, scores, resamples)
    ends = np.array([(i.low, i.high) for i in found] + [(1, 1)])
    np.testing.assert_allclose(band, np.column_stack([ROC_GRID, ends]), atol=1e-12)
    assert (band[:, 1] <= as_is).all()
    assert (as_is <= band[:, 2]).all()


def test_thinned_thresholds_hardly_move_the_band():
    random = np.random.default_rng(0)
    labels = [random.integers(0, 2, 500) for _ in range(5)]
    scores = [random.normal(label) for label in labels]
    resamples = draw_resamples("abcde", n_replicates=30, seed=1)
    full = roc_band(labels, scores, resamples, max_thresholds=10_000)
    thin = roc_band(labels, scores, resamples, max_thresholds=300)
    assert np.abs(full - thin).max() < 0.02


def test_one_class_has_no_band():
    resamples = draw_resamples("ab", n_replicates=5, seed=0)
    ones = [np.ones(3, int), np.ones(2, int)]
    assert roc_band(ones, [np.zeros(3), np.ones(2)], resamples) is None


def test_a_perfect_curve_has_a_band_with_width():
    """Every resampled curve is the same: the middle 95 % of them was [1, 1] everywhere."""
    labels = [np.array([i % 2] * 9) for i in range(12)]
    scores = [label * 0.8 + 0.1 for label in labels]
    band = roc_band(labels, scores, draw_resamples("abcdefghijkl", n_replicates=50, seed=0))
    assert (band[:-1, 1] < 0.7).all()
    assert (band[:, 2] == 1).all()
    assert band[-1].tolist() == [1, 1, 1]
