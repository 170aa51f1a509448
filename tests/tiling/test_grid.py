"""Where tiles sit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiling.errors import GridError
from tiling.grid import lay_grid, tile_coords

sizes = st.tuples(st.integers(0, 40), st.integers(0, 40))
sides = st.tuples(st.integers(1, 12), st.integers(1, 12))


@given(slide_size=sizes, tile=sides, stride=sides)
def test_coords_match_the_plain_double_loop(slide_size, tile, stride):
    """The vectorised grid equals the definition, read off one tile at a time."""
    width, height = slide_size
    expected = [
        [x, y]
        for y in range(0, height, stride[1])
        for x in range(0, width, stride[0])
        if x + tile[0] <= width and y + tile[1] <= height
    ]

    coords = tile_coords(slide_size, tile_l0=tile, stride_l0=stride)

    assert coords.dtype == np.int64
    assert coords.shape[1] == 2
    assert coords.tolist() == expected


@given(slide_size=sizes, tile=sides, stride=sides)
def test_padding_keeps_every_tile_that_starts_inside(slide_size, tile, stride):
    width, height = slide_size
    expected = [[x, y] for y in range(0, height, stride[1]) for x in range(0, width, stride[0])]

    assert tile_coords(slide_size, tile_l0=tile, stride_l0=stride, edge="pad").tolist() == expected


def test_one_number_means_both_axes():
    one = tile_coords((50, 40), tile_l0=8, stride_l0=5)

    assert np.array_equal(one, tile_coords((50, 40), tile_l0=(8, 8), stride_l0=(5, 5)))


def test_a_slide_smaller_than_a_tile_has_no_tile_unless_padded():
    assert tile_coords((5, 5), tile_l0=8, stride_l0=8).shape == (0, 2)
    assert tile_coords((5, 5), tile_l0=8, stride_l0=8, edge="pad").tolist() == [[0, 0]]


@pytest.mark.parametrize(("tile", "stride"), [(0, 1), (1, 0), (-1, 1), ((2, 0), 2), (2, (2, -1))])
def test_lengths_below_one_pixel_are_refused(tile, stride):
    with pytest.raises(GridError, match="at least one level-0 pixel, got tile_l0="):
        tile_coords((10, 10), tile_l0=tile, stride_l0=stride)


def test_negative_sizes_and_unknown_edges_are_refused():
    with pytest.raises(GridError, match="cannot be negative"):
        tile_coords((-1, 10), tile_l0=2, stride_l0=2)
    with pytest.raises(GridError, match="edge must be one of drop, pad, got 'keep'"):
        tile_coords((10, 10), tile_l0=2, stride_l0=2, edge="keep")


@given(
    columns=st.integers(0, 9), rows=st.integers(0, 9), most=st.integers(1, 100)
)  # a side of 1: as many tiles as pixels
def test_tiles_by_groups_are_those_of_the_whole_grid(columns, rows, most):
    grid = lay_grid((columns, rows), tile_l0=1, stride_l0=1)
    groups = list(grid.iterate(most=most))
    laid = np.concatenate([np.zeros((0, 2), np.int64), *groups])

    np.testing.assert_array_equal(laid, tile_coords((columns, rows), tile_l0=1, stride_l0=1))
    assert len(grid) == columns * rows
    assert all(0 < len(group) <= max(most, columns) for group in groups)
