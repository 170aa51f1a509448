"""The threshold sweep against counting one patch at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.evaluation.sweep import sweep_columns, sweep_rows, sweep_thresholds


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8)), min_size=1, max_size=40))
def test_every_row_is_what_counting_gives(patches):
    labels = np.array([label for label, _ in patches])
    scores = np.array([score / 8 for _, score in patches], np.float32)
    thresholds = sweep_thresholds(labels, scores, including=[0.75])
    assert thresholds.tolist() == sorted({*scores.tolist(), 0.75}, reverse=True)
    for row in sweep_rows(labels, scores, thresholds):
        named = dict(zip(sweep_columns(), row, strict=True))
        called = [(label, s >= named["threshold"]) for label, s in zip(labels, scores, strict=True)]
        tp, fp = called.count((1, True)), called.count((0, True))
        fn, tn = called.count((1, False)), called.count((0, False))
        assert [named[k] for k in ("tp", "fp", "fn", "tn")] == [tp, fp, fn, tn]
        assert named["precision"] == (tp / (tp + fp) if tp + fp else None)
        assert named["recall"] == (tp / (tp + fn) if tp + fn else None)
        assert named["specificity"] == (tn / (tn + fp) if tn + fp else None)
        assert named["f1"] == (2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None)
        assert named["accuracy"] == (tp + tn) / len(patches)
        if 0 < labels.sum() < labels.size:
            assert named["youden_j"] == pytest.approx(tp / (tp + fn) + tn / (tn + fp) - 1)


def test_many_scores_are_thinned_between_the_ends():
    scores = np.random.default_rng(0).random(5000)
    thresholds = sweep_thresholds(np.ones(5000, int), scores, including=[0.5], max_rows=100)
    assert thresholds.size == 101
    assert (thresholds[0], thresholds[-1]) == (scores.max(), scores.min())
    assert 0.5 in thresholds
    assert (np.diff(thresholds) < 0).all()


def test_no_patch_has_only_the_thresholds_asked_for():
    empty = np.zeros(0)
    assert sweep_thresholds(empty, empty, including=[0.75]).tolist() == [0.75]
    assert sweep_rows(empty, empty, np.array([0.75]))[0][1:] == [0, 0, 0, 0] + [None] * 6
