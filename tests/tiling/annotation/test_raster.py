"""Polygons drawn on a coarse grid: by their pixels' centres, none lost, none finer."""

import numpy as np
import pytest
import shapely
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from shapely.affinity import rotate
from shapely.ops import split

from tiling.annotation import raster
from tiling.annotation.raster import Box, rasterise


def star(seed, centre, size):
    """A random simple polygon around a centre."""
    random = np.random.default_rng(seed)
    n = int(random.integers(3, 15))
    angle = np.sort(random.random(n)) * 2 * np.pi
    reach = size * (0.2 + random.random(n))
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1) * reach[:, None] + centre
    polygon = shapely.Polygon(points)
    return polygon if polygon.is_valid else shapely.convex_hull(polygon)


def by_centres(polygons, box, downsample):
    y, x = np.mgrid[box.row : box.row + box.height, box.col : box.col + box.width] + 0.5
    union = shapely.union_all(polygons)
    return shapely.contains_xy(union, x * downsample, y * downsample)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), downsample=st.sampled_from([1.0, 7.3, 32.0]))
def test_a_pixel_is_inside_iff_its_centre_is(seed, downsample):
    hole = star(seed, np.array([20, 20]) * downsample, 4 * downsample)
    polygon = star(seed + 1, np.array([20, 20]) * downsample, 15 * downsample).difference(hole)
    parts = shapely.get_parts(polygon)
    parts = parts[shapely.get_type_id(parts) == 3]
    box = Box(1, 3, 38, 41)
    drawn = rasterise(parts, box=box, downsample=downsample)
    exact = by_centres(parts, box, downsample)
    # A part without any centre still gets its pixel.
    assert (drawn | exact == drawn).all()
    assert np.count_nonzero(drawn != exact) <= len(parts)


def test_polygons_with_a_common_edge_share_no_pixel_and_leave_none_out():
    whole = rotate(shapely.box(50, 50, 450, 450), 17)
    halves = shapely.get_parts(split(whole, shapely.LineString([(0, 90), (500, 333)])))
    box = Box(0, 0, 50, 50)
    a, b = (rasterise(np.array([half]), box=box, downsample=10) for half in halves)
    assert not (a & b).any()
    assert np.array_equal(a | b, rasterise(np.array([whole]), box=box, downsample=10))


def test_a_square_on_pixel_edges_covers_exactly_its_pixels():
    drawn = rasterise(np.array([shapely.box(64, 32, 160, 96)]), box=Box(0, 0, 5, 7), downsample=32)
    assert [tuple(p) for p in np.argwhere(drawn)] == [(r, c) for r in (1, 2) for c in (2, 3, 4)]


def test_a_polygon_smaller_than_a_pixel_keeps_one():
    drawn = rasterise(np.array([shapely.box(65, 33, 70, 38)]), box=Box(0, 0, 3, 4), downsample=32)
    assert np.argwhere(drawn).tolist() == [[1, 2]]


def test_what_lies_left_of_the_box_does_not_leak_into_it():
    drawn = rasterise(np.array([shapely.box(-99, -99, 33, 70)]), box=Box(0, 0, 3, 3), downsample=32)
    assert drawn.astype(int).tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("n", [0, 1])
def test_no_polygon_draws_nothing(n):
    outside = np.array([shapely.box(900, 900, 990, 990)] * n, dtype=object)
    assert not rasterise(outside, box=Box(0, 0, 3, 3), downsample=32).any()


@settings(max_examples=25)
@example(seed=449, at_once=1, many=10**6)
@given(seed=st.integers(0, 10**6), at_once=st.integers(1, 60), many=st.sampled_from([0, 40, 10**6]))
def test_edges_a_few_at_a_time_draw_the_same(seed, at_once, many):
    polygons = np.array([star(seed, np.array([9, 9]), 8), star(seed + 1, np.array([30, 20]), 9)])
    box = Box(1, 2, 30, 41)
    # One of "many" crossings is taken to cover some centre; a thin star of few need not.
    assume(many > 1000 or all(by_centres([one], box, 1).any() for one in polygons))
    whole = rasterise(polygons, box=box, downsample=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raster, "CROSSINGS_AT_ONCE", at_once)
        patch.setattr(raster, "MANY_CROSSINGS", many)
        assert np.array_equal(rasterise(polygons, box=box, downsample=1), whole)


def test_a_polygon_far_larger_than_the_box_draws_the_box():
    ring = [(-1e8, -1e8), (1e8, -1e8), (1e8, 1e8), (100, 40), (-1e8, 1e8)]
    drawn = rasterise(np.array([shapely.Polygon(ring)]), box=Box(0, 0, 10, 10), downsample=32)
    exact = by_centres([shapely.Polygon(ring)], Box(0, 0, 10, 10), 32)
    assert np.array_equal(drawn, exact)
    assert 0 < drawn.sum() < 100
