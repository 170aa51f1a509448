"""Maps of patches lie where their patches are, on any lattice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.errors import HeatmapError
from wsi_pipeline.heatmaps.stitched_maps import stitch_maps


def stitch_by_hand(maps, *, slide_size, scale, step_px):
    """Average, cell by cell, the px of each map whose edges round into the cell."""
    pixel = [max(1, round(step_px * s)) for s in scale]
    width, height = (-(-side // p) for side, p in zip(slide_size, pixel, strict=True))
    found = np.full((height, width), np.nan)
    for row in range(height):
        for column in range(width):
            values = []
            for (x, y), one in maps:
                px = []
                for cell, p, start, s, length in zip(
                    (row, column), pixel[::-1], (y, x), scale[::-1], one.shape, strict=True
                ):
                    if not start <= (cell + 0.5) * p < start + length * s:
                        break
                    low, high = (
                        int(np.clip(np.rint((edge * p - start) / s), 0, length))
                        for edge in (cell, cell + 1)
                    )
                    low = min(low, length - 1)
                    px.append(slice(low, max(high, low + 1)))
                else:
                    values.append(one[px[0], px[1]].mean())
            if values:
                found[row, column] = np.mean(values)
    return found


@settings(max_examples=40, deadline=None)
@given(
    corners=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 30)), min_size=1, max_size=5),
    scale=st.sampled_from([(1, 1), (2.3, 2.3), (2, 1.5)]),
    step=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_stitching_is_the_mean_of_each_cell(corners, scale, step, seed):
    rng = np.random.default_rng(seed)
    maps = [(corner, rng.normal(size=(9, 12))) for corner in corners]
    found = stitch_maps(maps, slide_size=(61, 47), scale=scale, step_px=step)
    expected = stitch_by_hand(maps, slide_size=(61, 47), scale=scale, step_px=step)
    np.testing.assert_allclose(found.values, expected, rtol=1e-5, atol=1e-6)


def test_overlapping_patches_are_averaged_and_constants_kept():
    ones, threes = np.ones((8, 8), np.float32), np.full((8, 8), 3, np.float32)
    maps = [((0, 0), ones), ((8, 0), threes)]
    found = stitch_maps(maps, slide_size=(24, 16), scale=(2, 2), step_px=2)
    assert found.pixel_l0 == (4, 4)
    np.testing.assert_array_equal(found.values, [[1, 1, 2, 2, 3, 3]] * 4)


def test_a_step_below_one_is_refused():
    with pytest.raises(HeatmapError, match="at least 1 px, got 0"):
        stitch_maps([], slide_size=(4, 4), scale=(1, 1), step_px=0)
