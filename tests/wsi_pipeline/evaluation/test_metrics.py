"""Metrics of decisions and of rankings against scikit-learn, and the rule of the threshold."""

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

from wsi_pipeline.contracts import Rule
from wsi_pipeline.evaluation.metrics import (
    PATCH,
    Confusion,
    count_confusion,
    ranking_figures,
    shares_of,
)
from wsi_pipeline.evaluation.ranking import ranking_curves


def compute(confusion, section="patch"):
    return {share.name: share.compute(confusion) for share in shares_of(section)}


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6))
def test_figures_equal_scikit_learn(seed):
    random = np.random.default_rng(seed)
    labels = np.array([1, 0, *random.integers(0, 2, 20)])
    scores = np.array([1.0, 0.0, *random.integers(0, 5, 20) / 4])
    predicted = scores >= 0.75
    counted = count_confusion(labels, scores, Rule(0.75))
    expected = confusion_matrix(labels, predicted, labels=[1, 0])
    assert [[counted.tp, counted.fn], [counted.fp, counted.tn]] == expected.tolist()
    assert compute(counted) == pytest.approx(
        {
            "accuracy": accuracy_score(labels, predicted),
            "precision": precision_score(labels, predicted),
            "recall": recall_score(labels, predicted),
            "f1": f1_score(labels, predicted),
        }
    )
    ranking, reasons = ranking_figures(PATCH, labels, scores)
    assert ranking["roc_auc"] == pytest.approx(roc_auc_score(labels, scores))
    assert ranking["average_precision"] == pytest.approx(average_precision_score(labels, scores))
    assert reasons == {}


@pytest.mark.parametrize(
    ("counts", "accuracy", "precision", "recall", "specificity"),
    [
        ((805, 48, 18, 614), 0.9556, 0.9437, 0.9781, 0.9275),
        ((24796, 5345, 4340, 158754), 0.9499, 0.8227, 0.8510, 0.9674),
    ],
)
def test_the_lectures_counts_give_its_figures(counts, accuracy, precision, recall, specificity):
    confusion = Confusion(*counts)
    figures = compute(confusion)
    assert figures["accuracy"] == pytest.approx(accuracy, abs=5e-5)
    assert figures["precision"] == pytest.approx(precision, abs=5e-5)
    assert figures["recall"] == pytest.approx(recall, abs=5e-5)
    assert compute(confusion, "slide")["specificity"] == pytest.approx(specificity, abs=5e-5)


def test_the_threshold_itself_is_positive_also_in_float32():
    scores = np.array([0.75, np.nextafter(np.float32(0.75), 0)], np.float32)
    assert count_confusion(np.array([1, 1]), scores, Rule(0.75)) == Confusion(1, 0, 1, 0)


def test_scores_are_compared_as_the_tables_write_them():
    """In float32 0.7 reached a threshold of 0.7, in patches.csv and sweep.csv it does not."""
    scores = np.array([0.7, 0.3], np.float32)  # float64: 0.699999988..., 0.300000012...
    labels = np.array([1, 1])
    assert count_confusion(labels, scores, Rule(0.7)) == Confusion(0, 0, 2, 0)
    assert count_confusion(labels, scores, Rule(0.3)) == Confusion(2, 0, 0, 0)


def test_ignored_and_unreadable_patches_count_nowhere():
    labels, scores = np.array([-1, 1, 0, -1]), np.array([0.9, np.nan, np.nan, 0.1])
    assert count_confusion(labels, scores, Rule(0.5)) == Confusion(0, 0, 0, 0)


@pytest.mark.parametrize("strict", [False, True])
def test_a_score_at_the_threshold_is_positive_unless_the_rule_is_strict(strict):
    rule = Rule(0.5, strict)
    scores = np.array([np.nextafter(0.5, 0), 0.5, np.nextafter(0.5, 1), np.nan])
    assert rule.decide(scores).tolist() == [False, not strict, True, False]
    assert count_confusion(np.ones(4, int), scores, rule).tp == 2 - strict


def test_undefined_figures_are_none_with_a_reason():
    negative = Confusion(0, 0, 0, 5)
    assert compute(negative) == {"accuracy": 1.0, "precision": None, "recall": None, "f1": None}
    assert [share.explain(PATCH) for share in shares_of("patch")] == [
        "no labelled patch",
        "no patch is predicted positive",
        "no positive patch",
        "no patch is positive or predicted positive",
    ]
    assert compute(Confusion(0, 0, 0, 0))["accuracy"] is None


@pytest.mark.parametrize("labels", [[], [0, 0], [1, 1]])
def test_one_class_has_no_ranking(labels):
    figures, undefined = ranking_figures(PATCH, np.array(labels), np.ones(len(labels)))
    assert figures == {"roc_auc": None, "average_precision": None}
    assert set(undefined) == set(figures)
    assert ranking_curves(np.array(labels), np.ones(len(labels))) is None
