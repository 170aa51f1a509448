"""Heatmaps against masks: P2's figures, per image and then averaged."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from wsi_pipeline.contracts import Heatmap
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.localisation import average_localisation, draw_mask, localise

MASK = np.zeros((8, 10), bool)
MASK[2:5, 3:7] = True


def figures(heatmap, mask=MASK):
    image = localise(np.asarray(heatmap, np.float32), mask)
    return image.exact_match, image.recall, image.roc_auc


def test_a_perfect_map_has_all_and_an_inverted_one_nothing():
    assert figures(MASK) == (1, 1, 1)
    assert figures(~MASK) == (0, 0, 0)


def test_an_all_white_map_finds_all_and_matches_the_share_of_the_mask():
    assert figures(np.ones(MASK.shape)) == (12 / 80, 1, 0.5)


@pytest.mark.parametrize(
    ("value", "called"),
    [(0.5, True), (0.5001, True), (0.4999, False), (np.nextafter(0.5, 0), False)],
)
def test_half_itself_is_tumour(value, called):
    """One rule for slides and single images."""
    image = localise(np.full(MASK.shape, value), MASK)
    assert (image.recall, image.roc_auc) == (called, 0.5)
    assert image.exact_match == pytest.approx(12 / 80 if called else 68 / 80)


def test_images_are_averaged_and_not_pooled_and_skips_are_counted():
    small, large = np.ones((1, 2), bool), np.zeros((40, 40), bool)
    large[0, 0] = True
    mean = average_localisation(
        [
            localise(np.zeros((1, 2)), small),  # full mask: no ROC AUC
            localise(large.astype(float), large),
            localise(np.zeros((3, 3)), np.zeros((3, 3), bool)),  # empty mask: neither
        ]
    )
    assert mean.n == 3
    assert mean.exact_match == pytest.approx(2 / 3)
    assert (mean.recall, mean.recall_skipped) == (0.5, 1)
    assert (mean.roc_auc, mean.roc_auc_skipped) == (1, 2)


def test_no_image_has_no_figures():
    mean = average_localisation([])
    assert (mean.n, mean.exact_match, mean.recall, mean.roc_auc) == (0, None, None, None)


def test_what_was_not_scored_is_not_called_tumour():
    heatmap = MASK.astype(float)
    heatmap[2] = np.nan
    image = localise(heatmap, MASK)
    assert image.n_unscored == 10
    assert image.recall == pytest.approx(8 / 12)
    assert image.exact_match == pytest.approx(1 - 4 / 80)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(EvaluationError, match=r"\(2, 2\) does not match .*\(8, 10\)"):
        localise(np.zeros((2, 2)), MASK)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_it_is_what_plain_python_and_scikit_learn_compute(seed):
    random = np.random.default_rng(seed)
    heatmap = random.integers(0, 5, (4, 5)) / 4
    mask = random.random((4, 5)) < 0.4
    called = [h >= 0.5 for h in heatmap.ravel()]
    pairs = list(zip(called, mask.ravel(), strict=True))
    image = localise(heatmap, mask)
    assert image.exact_match == sum(c == m for c, m in pairs) / 20
    if mask.any():
        assert image.recall == sum(c for c, m in pairs if m) / mask.sum()
    if mask.any() and not mask.all():
        assert image.roc_auc == pytest.approx(roc_auc_score(mask.ravel(), heatmap.ravel()))


def test_an_annotation_is_drawn_on_the_heatmaps_own_grid():
    heatmap = Heatmap(np.zeros((4, 6), np.float32), (100, 50), (600, 200))
    tumour = shapely.MultiPolygon([shapely.box(200, 50, 400, 150)])
    expected = np.zeros((4, 6), bool)
    expected[1:3, 2:4] = True
    np.testing.assert_array_equal(draw_mask(tumour, heatmap), expected)
    assert not draw_mask(shapely.MultiPolygon(), heatmap).any()
