"""ROC and precision-recall curves, and the ROC AUC of patches on resampled slides."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from wsi_pipeline.evaluation.bootstrap import draw_resamples
from wsi_pipeline.evaluation.intervals import Undefined, percentile_interval
from wsi_pipeline.evaluation.ranking import (
    pair_counts,
    patch_kinds,
    ranking_curves,
    replicate_patch_auc,
)


def interval_of(labels, scores, drawn):
    pairs = pair_counts(labels, scores)
    values = replicate_patch_auc(pairs, drawn.weights)
    return percentile_interval(values, drawn, kinds=patch_kinds(pairs))


def test_curves_enclose_their_areas():
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 300)
    scores = np.round(random.normal(labels), 1)
    curves = ranking_curves(labels, scores)
    area = np.trapezoid(curves.roc[:, 2], curves.roc[:, 1])
    assert area == pytest.approx(roc_auc_score(labels, scores))
    assert (np.diff(curves.roc[:, 0]) <= 0).all()
    assert (np.diff(curves.precision_recall[:, 0]) <= 0).all()
    assert (np.diff(curves.precision_recall[:, 1]) >= 0).all()


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_pairs_of_slides_give_every_replicates_auc(seed):
    random = np.random.default_rng(seed)
    sizes = random.integers(0, 8, 4)
    labels = [random.integers(0, 2, n) for n in sizes]
    scores = [random.integers(0, 4, n) / 3 for n in sizes]
    won, positive, negative = pair_counts(labels, scores)
    for row in draw_resamples(["a", "b", "c", "d"], n_replicates=5, seed=seed).weights:
        truth = np.concatenate([np.tile(a, w) for a, w in zip(labels, row, strict=True)])
        value = np.concatenate([np.tile(a, w) for a, w in zip(scores, row, strict=True)])
        if np.unique(truth).size == 2:
            auc = row @ won @ row / ((row @ positive) * (row @ negative))
            assert auc == pytest.approx(roc_auc_score(truth, value))


def test_the_interval_of_patches_skips_replicates_of_one_class():
    labels = [np.array([1, 1])] * 2 + [np.array([0, 0])] * 3
    scores = [
        np.array([0.9, 0.4]),
        np.array([0.2, 0.8]),
        *(np.array([0.1, s]) for s in (0, 0.5, 1)),
    ]
    patients = ["a", "b", "c", "d", "e"]
    drawn = draw_resamples(patients, n_replicates=100, seed=0)
    interval = interval_of(labels, scores, drawn)
    assert 0 <= interval.low < interval.high <= 1
    replicates = replicate_patch_auc(pair_counts(labels, scores), drawn.weights)
    assert 0 < np.isnan(replicates).sum() < replicates.size
    alone = interval_of(labels[1:], scores[1:], drawn.take([1, 2, 3, 4]))
    assert alone == Undefined("4 patients, at least 5 are needed")
    none = interval_of(labels[:1], scores[:1], drawn.take([0]))
    assert none == Undefined("undefined in every resampled set")
