"""Shrinking by exact areas, and which level to read."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiling import resample
from tiling.resample import average_areas, nearest_finer_level


def mean_by_supersampling(image, box, out_px, fine=40):
    """The definition, by brute force: many points per pixel, each the pixel it falls in."""
    x, y, width, height = box
    columns = x + (np.arange(out_px[0] * fine) + 0.5) * width / (out_px[0] * fine)
    rows = y + (np.arange(out_px[1] * fine) + 0.5) * height / (out_px[1] * fine)
    points = image[np.ix_(rows.astype(int), columns.astype(int))].astype(float)
    return points.reshape(out_px[1], fine, out_px[0], fine, 3).mean(axis=(1, 3))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 99),
    start=st.tuples(st.floats(0, 3), st.floats(0, 3)),
    extent=st.tuples(st.floats(4, 17), st.floats(4, 17)),
    out_px=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_each_pixel_is_the_mean_of_the_area_under_it(seed, start, extent, out_px):
    image = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    box = (*start, *extent)

    expected = mean_by_supersampling(image, box, out_px)

    assert np.abs(average_areas(image, box=box, out_px=out_px) - expected).max() < 20


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_whole_ratios_are_the_mean_of_blocks(ratio):
    image = np.random.default_rng(0).integers(0, 256, (12, 24, 3), dtype=np.uint8)
    means = image.reshape(12 // ratio, ratio, 24 // ratio, ratio, 3).mean(axis=(1, 3))

    result = average_areas(image, box=(0, 0, 24, 12), out_px=(24 // ratio, 12 // ratio))

    assert np.abs(result - means).max() <= 0.5 + 1e-4


@settings(max_examples=40)
@given(
    value=st.integers(0, 255),
    start=st.floats(0, 5),
    extent=st.floats(0.5, 25),
    n_out=st.integers(1, 40),
)
def test_a_constant_stays_that_constant(value, start, extent, n_out):
    image = np.full((31, 31, 3), value, np.uint8)

    assert (
        average_areas(image, box=(start,) * 2 + (extent,) * 2, out_px=(n_out, n_out)) == value
    ).all()


def test_scale_one_is_the_identity():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)

    np.testing.assert_array_equal(
        average_areas(image, box=(3, 5, 20, 20), out_px=(20, 20)), image[5:25, 3:23]
    )


def test_neighbours_join_without_a_seam():
    image = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    whole = average_areas(image, box=(0, 0, 88, 88), out_px=(40, 40))

    left = average_areas(image, box=(0, 0, 44, 88), out_px=(20, 40))
    right = average_areas(image, box=(44, 0, 44, 88), out_px=(20, 40))

    np.testing.assert_array_equal(np.hstack([left, right]), whole)


def test_what_is_finer_than_the_result_does_not_alias():
    """A zone plate: rings that the result cannot hold fade, where picking pixels makes new ones."""
    y, x = np.mgrid[-256:256, -256:256]
    rings = 127.5 + 127.5 * np.cos(np.pi * (x**2 + y**2) / 512)
    image = np.repeat(np.rint(rings).astype(np.uint8)[..., None], 3, axis=-1)
    out_px = (171, 171)  # a ratio of 2.99
    radius = np.hypot(*np.mgrid[-85:86, -85:86]) * 512 / 171
    too_fine = (radius > 150) & (radius < 250)  # twice the frequency the result can hold

    shrunk = average_areas(image, box=(0, 0, 512, 512), out_px=out_px)[..., 0].astype(float)
    picked = image[1::3, 1::3, 0].astype(float)

    assert shrunk[too_fine].std() < 0.2 * picked[too_fine].std()
    assert abs(shrunk[too_fine].mean() - 127.5) < 3


@pytest.mark.parametrize(
    ("scale", "level"),
    [(0.98, 0), (1.0, 0), (3.9, 0), (3.97, 1), (4.0, 1), (4.1, 1), (15.0, 1), (16.0, 2), (99.0, 2)],
)
def test_the_nearest_finer_level_is_read(scale, level):
    assert nearest_finer_level((1.0, 4.0003, 16.02), (scale, scale)) == level


def test_the_finer_axis_decides_the_level():
    assert nearest_finer_level((1.0, 2.0, 4.0), (4.0, 2.0)) == 1


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_first_pictures_are_averaged_to_the_same_bits_as_the_others(data):
    """The first few are averaged without scipy.sparse, which takes long to import."""
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    height, width = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    x, y = data.draw(st.floats(0, 0.9)), data.draw(st.floats(0, 0.9))
    box = (x, y, width - x, height - y)
    out_px = (data.draw(st.integers(1, width)), data.draw(st.integers(1, height)))
    found = []
    for first in (0, resample.FEW_PICTURES):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resample, "_n_averaged", itertools.count(first))
            found.append(resample.average_areas(image, box=box, out_px=out_px))
    np.testing.assert_array_equal(*found)
