"""Patch confusion, ranking and its interval over slides."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from wsi_pipeline.evaluation.bootstrap import draw_resamples
from wsi_pipeline.evaluation.intervals import Undefined
from wsi_pipeline.evaluation.patch import (
    Confusion,
    confusion_figures,
    count_confusion,
    pair_counts,
    patch_auc_interval,
    ranking_curves,
    ranking_figures,
    replicate_patch_auc,
)


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6))
def test_figures_equal_scikit_learn(seed):
    random = np.random.default_rng(seed)
    labels = np.array([1, 0, *random.integers(0, 2, 20)])
    scores = np.array([1.0, 0.0, *random.integers(0, 5, 20) / 4])
    predicted = scores >= 0.75
    counted = count_confusion(labels, scores, threshold=0.75)
    expected = confusion_matrix(labels, predicted, labels=[1, 0])
    assert [[counted.tp, counted.fn], [counted.fp, counted.tn]] == expected.tolist()
    figures, undefined = confusion_figures(counted)
    assert figures == pytest.approx(
        {
            "accuracy": accuracy_score(labels, predicted),
            "precision": precision_score(labels, predicted),
            "recall": recall_score(labels, predicted),
            "f1": f1_score(labels, predicted),
        }
    )
    ranking, reasons = ranking_figures(labels, scores, what="patches")
    assert ranking["roc_auc"] == pytest.approx(roc_auc_score(labels, scores))
    assert ranking["average_precision"] == pytest.approx(average_precision_score(labels, scores))
    assert undefined == reasons == {}


@pytest.mark.parametrize(
    ("counts", "accuracy", "precision", "recall", "specificity"),
    [
        ((805, 48, 18, 614), 0.9556, 0.9437, 0.9781, 0.9275),
        ((24796, 5345, 4340, 158754), 0.9499, 0.8227, 0.8510, 0.9674),
    ],
)
def test_the_lectures_counts_give_its_figures(counts, accuracy, precision, recall, specificity):
    confusion = Confusion(*counts)
    figures, _ = confusion_figures(confusion)
    assert figures["accuracy"] == pytest.approx(accuracy, abs=5e-5)
    assert figures["precision"] == pytest.approx(precision, abs=5e-5)
    assert figures["recall"] == pytest.approx(recall, abs=5e-5)
    assert confusion.tn / (confusion.tn + confusion.fp) == pytest.approx(specificity, abs=5e-5)


def test_the_threshold_itself_is_positive_also_in_float32():
    scores = np.array([0.75, np.nextafter(np.float32(0.75), 0)], np.float32)
    assert count_confusion(np.array([1, 1]), scores, threshold=0.75) == Confusion(1, 0, 1, 0)


def test_scores_are_compared_as_the_tables_write_them():
    """In float32 0.7 reached a threshold of 0.7, in patches.csv and sweep.csv it does not."""
    scores = np.array([0.7, 0.3], np.float32)  # float64: 0.699999988..., 0.300000012...
    labels = np.array([1, 1])
    assert count_confusion(labels, scores, threshold=0.7) == Confusion(0, 0, 2, 0)
    assert count_confusion(labels, scores, threshold=0.3) == Confusion(2, 0, 0, 0)


def test_ignored_and_unreadable_patches_count_nowhere():
    labels, scores = np.array([-1, 1, 0, -1]), np.array([0.9, np.nan, np.nan, 0.1])
    assert count_confusion(labels, scores, threshold=0.5) == Confusion(0, 0, 0, 0)


def test_undefined_figures_are_none_with_a_reason():
    figures, undefined = confusion_figures(Confusion(0, 0, 0, 5))
    assert figures == {"accuracy": 1.0, "precision": None, "recall": None, "f1": None}
    assert set(undefined) == {"precision", "recall", "f1"}
    figures, undefined = confusion_figures(Confusion(0, 0, 0, 0))
    assert figures["accuracy"] is None


@pytest.mark.parametrize("labels", [[], [0, 0], [1, 1]])
def test_one_class_has_no_ranking(labels):
    figures, undefined = ranking_figures(np.array(labels), np.ones(len(labels)), what="patches")
    assert figures == {"roc_auc": None, "average_precision": None}
    assert set(undefined) == set(figures)
    assert ranking_curves(np.array(labels), np.ones(len(labels))) is None


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
    interval = patch_auc_interval(labels, scores, drawn)
    assert 0 <= interval.low < interval.high <= 1
    replicates = replicate_patch_auc(pair_counts(labels, scores), drawn.weights)
    assert 0 < np.isnan(replicates).sum() < replicates.size
    alone = patch_auc_interval(labels[1:], scores[1:], drawn.take([1, 2, 3, 4]))
    assert alone == Undefined("4 patients, at least 5 are needed")
    none = patch_auc_interval(labels[:1], scores[:1], drawn.take([0]))
    assert none == Undefined("undefined in every resampled set")
