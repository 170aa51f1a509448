"""Boxes around the pixels where a prototype is found."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsi_pipeline.models.prototype_boxes import find_box, upsample


@given(arrays(np.float64, (7, 9), elements=st.floats(-5, 5)), st.floats(0, 100))
def test_the_box_is_the_smallest_that_holds_the_highest_pixels(values, percentile):
    x, y, width, height = find_box(values, percentile)
    high = values >= np.percentile(values, percentile)
    assert high.any()
    outside = high.copy()
    outside[y : y + height, x : x + width] = False
    assert not outside.any()
    inside = high[y : y + height, x : x + width]
    assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


def test_the_box_of_a_constant_map_is_the_image():
    assert find_box(np.full((4, 6), 0.3)) == (0, 0, 6, 4)


def test_the_box_lies_at_the_position_that_is_most_similar():
    maps = torch.zeros(1, 7, 7)
    maps[0, 2, 5] = 9.0
    x, y, width, height = find_box(upsample(maps, (224, 224))[0].numpy())
    assert (x + width / 2, y + height / 2) == pytest.approx((5.5 * 32, 2.5 * 32))
    assert width == height
    assert 32 <= width <= 64


def test_upsampling_keeps_constants_and_the_order_of_maps():
    maps = torch.arange(3.0)[:, None, None].expand(3, 2, 3)
    assert torch.allclose(upsample(maps, (64, 96)), torch.arange(3.0)[:, None, None])
