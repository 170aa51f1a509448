"""Regions compared with shapely's union of all pixels, one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import union_all
from shapely.geometry import box

from wsi_pipeline.contracts import Heatmap
from wsi_pipeline.exports.regions import find_regions


@settings(max_examples=40)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 999),
    cut=st.tuples(st.integers(0, 6), st.integers(0, 4)),
)
def test_regions_are_the_union_of_their_pixels(height, width, seed, cut):
    rng = np.random.default_rng(seed)
    values = rng.random((height, width)).astype(np.float32)
    values[rng.random(values.shape) < 0.1] = np.nan
    size = (width * 7 - cut[0], height * 5 - cut[1])
    regions = find_regions(Heatmap(values, (7, 5), size), 0.4)

    pixels = [
        box(7 * c, 5 * r, min(7 * c + 7, size[0]), min(5 * r + 5, size[1]))
        for r, c in np.argwhere(values >= 0.4)
    ]
    outlines = [region.outline for region in regions]
    assert all(o.geom_type == "Polygon" and o.is_valid for o in outlines)
    assert union_all(outlines).equals(union_all(pixels))
    assert sum(o.area for o in outlines) == pytest.approx(sum(p.area for p in pixels))
    # Apart: they share no edge.
    for i, a in enumerate(outlines):
        for b in outlines[:i]:
            assert a.intersection(b).length == 0


def test_measurements_are_those_of_the_pixels():
    values = np.array([[0.9, 0.6, np.nan, 0.5], [0.1, 0.2, 0.3, 0.7]], np.float32)
    left, right = find_regions(Heatmap(values, (10, 10), (40, 20)), 0.5)
    assert left.outline.equals(box(0, 0, 20, 10))
    assert (left.highest, left.mean) == (pytest.approx(0.9), pytest.approx(0.75))
    assert right.outline.equals(box(30, 0, 40, 20))
    assert (right.highest, right.mean) == (pytest.approx(0.7), pytest.approx(0.6))


def test_nothing_above_the_threshold_gives_nothing():
    assert find_regions(Heatmap(np.full((3, 3), np.nan, np.float32), (2, 2), (6, 6)), 0.0) == []


def test_scores_are_compared_as_the_tables_write_them():
    """In float32 0.9 reached a threshold of 0.9; in patches.csv, 0.8999999761, it does not."""
    assert find_regions(Heatmap(np.full((1, 1), 0.9, np.float32), (2, 2), (2, 2)), 0.9) == []


def test_a_ring_has_a_hole():
    values = np.ones((3, 3), np.float32)
    values[1, 1] = 0
    (ring,) = find_regions(Heatmap(values, (4, 4), (12, 12)), 0.5)
    assert len(ring.outline.interiors) == 1
    assert ring.outline.area == 128
