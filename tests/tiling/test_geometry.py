"""Lengths of one slide, and the inner square."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiling.contracts import TileConfig, TissueConfig
from tiling.errors import GridError
from tiling.geometry import inner_squares, resolve_geometry

mpps = st.floats(0.1, 2.0)


def test_the_lecture_geometry_at_scale_one_is_the_pixels_128_to_383():
    geometry = resolve_geometry(TileConfig(target_mpp=0.172), slide_mpp=(0.172, 0.172))

    squares = inner_squares(np.array([[0, 0], [512, 1024]]), geometry)

    assert (geometry.patch_l0, geometry.stride_l0, geometry.inner_px) == (512, 512, 256)
    assert squares.tolist() == [[128, 128, 384, 384], [640, 1152, 896, 1408]]


def test_axes_keep_their_own_resolution():
    config = TileConfig(target_mpp=1.0, patch_px=100, stride_px=50)

    geometry = resolve_geometry(config, slide_mpp=(0.25, 0.5))

    assert (geometry.patch_l0, geometry.patch_l0_y) == (400, 200)
    assert (geometry.stride_l0, geometry.stride_l0_y) == (200, 100)
    assert geometry.scale == (4.0, 2.0)
    assert inner_squares(np.array([[0, 0]]), geometry).tolist() == [[100, 50, 300, 150]]


@given(mpp_x=mpps, mpp_y=mpps, patch=st.integers(1, 600), stride=st.integers(1, 600))
def test_level_0_lengths_are_the_nearest_whole_pixels(mpp_x, mpp_y, patch, stride):
    target = max(mpp_x, mpp_y)
    config = TileConfig(target_mpp=target, patch_px=patch, stride_px=stride)

    geometry = resolve_geometry(config, slide_mpp=(mpp_x, mpp_y))

    for length, px, mpp in [
        (geometry.patch_l0, patch, mpp_x),
        (geometry.patch_l0_y, patch, mpp_y),
        (geometry.stride_l0, stride, mpp_x),
        (geometry.stride_l0_y, stride, mpp_y),
    ]:
        assert length >= 1
        assert abs(length - px * target / mpp) <= 0.5 + 1e-9


@given(mpp=mpps, patch=st.integers(1, 300), data=st.data())
def test_the_inner_square_is_centred_and_of_its_own_width(mpp, patch, data):
    inner = data.draw(st.integers(1, patch))
    config = TileConfig(target_mpp=2.0, patch_px=patch, inner_px=inner)
    geometry = resolve_geometry(config, slide_mpp=(mpp, mpp))

    (x0, y0, x1, y1) = inner_squares(np.array([[7, 70]]), geometry)[0]

    assert x1 - x0 == pytest.approx(inner * 2.0 / mpp)
    assert (x0 + x1) / 2 - 7 == pytest.approx(patch / 2 * 2.0 / mpp)
    assert (y0 + y1) / 2 - 70 == pytest.approx(patch / 2 * 2.0 / mpp)


def test_no_tile_has_no_inner_square():
    geometry = resolve_geometry(TileConfig(), slide_mpp=(0.5, 0.5))

    assert inner_squares(np.empty((0, 2), np.int64), geometry).shape == (0, 4)


def test_a_patch_of_one_pixel_has_an_inner_square_of_one_pixel():
    assert resolve_geometry(TileConfig(patch_px=1), slide_mpp=(0.5, 0.5)).inner_px == 1


def test_a_slide_2_percent_coarser_passes_and_one_coarser_still_is_refused_with_the_remedy():
    config = TileConfig(target_mpp=0.5)

    assert resolve_geometry(config, slide_mpp=(0.509, 0.5)).scale[0] == 0.5 / 0.509
    with pytest.raises(GridError, match=r"0\.52 .* never enlarged; set tile.target_mpp to 0\.52"):
        resolve_geometry(config, slide_mpp=(0.5, 0.52))


@pytest.mark.parametrize("mpp", [(0.0, 0.5), (0.5, -1.0), (math.nan, 0.5), (0.5, math.inf)])
def test_a_slide_resolution_that_is_no_length_is_refused(mpp):
    with pytest.raises(GridError, match="mpp column"):
        resolve_geometry(TileConfig(), slide_mpp=mpp)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_mpp": 0.0}, "target_mpp"),
        ({"target_mpp": math.nan}, "target_mpp"),
        ({"patch_px": 0}, "patch_px"),
        ({"stride_px": 0}, "stride_px"),
        ({"stride_px": -5}, "stride_px"),
        ({"inner_px": 0}, "inner_px"),
        ({"inner_px": 513}, "inner_px must be from 1 to patch_px=512, got 513"),
        ({"label_rule": "center"}, "label_rule must be one of inner, centre, fraction"),
        ({"edge": "keep"}, "edge must be one of drop, pad"),
        ({"store": "png"}, "store must be one of"),
        ({"positive_fraction": 0.0}, "negative_fraction must be below positive_fraction"),
        ({"positive_fraction": 1.5}, "positive_fraction=1.5"),
        ({"negative_fraction": -0.1}, "negative_fraction=-0.1"),
        ({"positive_fraction": math.nan}, "positive_fraction=nan"),
        ({"max_unreadable": 1.1}, "max_unreadable"),
        ({"tissue": TissueConfig(mpp=0)}, r"tissue\.mpp must be a positive number.*got 0"),
        ({"tissue": TissueConfig(min_saturation=5)}, r"tissue\.min_saturation .*got 5"),
        ({"tissue": TissueConfig(min_fraction=math.nan)}, r"tissue\.min_fraction .*got nan"),
        ({"tissue": TissueConfig(max_hole_um2=-1)}, r"tissue\.max_hole_um2 .*got -1"),
    ],
)
def test_settings_out_of_range_are_named_with_their_value(change, message):
    config = dataclasses.replace(TileConfig(), **change)

    with pytest.raises(GridError, match=message):
        resolve_geometry(config, slide_mpp=(0.5, 0.5))
