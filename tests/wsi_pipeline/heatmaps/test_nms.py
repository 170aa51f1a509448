"""Detections compared with the definition, read literally."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.contracts import Heatmap
from wsi_pipeline.errors import HeatmapError
from wsi_pipeline.heatmaps.nms import detect, radius_in_px


def brute_force(values, threshold, radius):
    """Search the highest score again for each detection."""
    left = values.copy()
    found = []
    while True:
        best = None
        for row, column in np.ndindex(*left.shape):
            score = left[row, column]
            if score > threshold and (best is None or score > left[best]):
                best = (row, column)
        if best is None:
            return found
        found.append((*best, float(left[best])))
        row, column = best
        for r in range(max(row - radius, 0), min(row + radius, left.shape[0])):
            for c in range(max(column - radius, 0), min(column + radius, left.shape[1])):
                left[r, c] = np.nan


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    seed=st.integers(0, 999),
    radius=st.integers(1, 5),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 0.9]),
)
def test_detections_equal_the_search_for_the_highest(shape, seed, radius, threshold):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 9, shape).astype(np.float32) / 8  # many ties
    values[rng.random(shape) < 0.2] = np.nan
    heatmap = Heatmap(values, (10, 20), (shape[1] * 10, shape[0] * 20))

    found = detect(heatmap, threshold=threshold, radius_px=radius)

    expected = brute_force(values, threshold, radius)
    assert found.x.tolist() == [column * 10 + 5 for _, column, _ in expected]
    assert found.y.tolist() == [row * 20 + 10 for row, _, _ in expected]
    assert found.scores.tolist() == [score for *_, score in expected]


def test_cleared_square_reaches_one_further_up_and_left():
    values = np.full((1, 7), 0.6, np.float32)
    values[0, 3] = 0.9

    found = detect(Heatmap(values, (1, 1), (7, 1)), radius_px=2)

    assert found.x.tolist() == [3, 0, 5]  # [1, 5) cleared, then [-2, 2), then [3, 7)


def test_score_at_the_threshold_is_no_detection():
    values = np.array([[0.5, np.nan]], np.float32)
    assert len(detect(Heatmap(values, (1, 1), (2, 1)), threshold=0.5, radius_px=1).x) == 0


def test_scores_are_compared_as_they_are_written():
    """Float32 0.3 is 0.300000012, above a threshold of 0.3; it was not detected."""
    values = np.array([[0.3]], np.float32)
    assert len(detect(Heatmap(values, (1, 1), (1, 1)), threshold=0.3, radius_px=1).x) == 1


def test_detection_in_the_last_partial_pixel_stays_inside_the_slide():
    values = np.array([[0.1, 0.9]], np.float32)
    found = detect(Heatmap(values, (100, 100), (120, 30)), radius_px=1)
    assert (found.x.tolist(), found.y.tolist()) == ([119], [29])


def test_radius_below_one_pixel_is_refused():
    with pytest.raises(HeatmapError, match="radius_px"):
        detect(Heatmap(np.zeros((1, 1), np.float32), (1, 1), (1, 1)), radius_px=0)


def test_pixels_that_are_not_square_are_cleared_as_far_in_um_along_both_axes():
    values = np.zeros((16, 4), np.float32)
    values[4:12, 1:3] = 0.9  # 128 x 128 level-0 px
    heatmap = Heatmap(values, (64, 16), (256, 256))
    radius = radius_in_px(32, heatmap, (0.25, 0.25))
    assert radius == (2, 8)
    assert len(detect(heatmap, radius_px=radius).x) == 1
