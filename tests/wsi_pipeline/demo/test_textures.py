"""Noise, outlines and stains have the intended properties."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.demo.textures import (
    MAX_REACH,
    Stain,
    blob_outline,
    draw_fibres,
    draw_stain,
    fill_polygon,
    smooth_noise,
    stain_image,
)

SEEDS = st.integers(0, 2**31)


@settings(max_examples=50)
@given(SEEDS, st.floats(5, 2000), st.floats(0, 0.3))
def test_an_outline_is_simple_and_stays_within_its_reach(seed, diameter, irregularity):
    rng = np.random.default_rng(seed)

    outline = blob_outline(rng, (100.0, -50.0), diameter, irregularity=irregularity)

    polygon = shapely.Polygon(outline)
    assert polygon.is_valid
    assert polygon.contains(shapely.Point(100, -50))
    reach = np.hypot(*(outline - (100, -50)).T).max()
    assert reach <= MAX_REACH * diameter / 2 + 1e-6


def test_no_stain_shows_the_glass_and_more_stain_is_darker():
    stain = Stain((0.6, 0.7, 0.3), (0.1, 0.9, 0.4), (243.0, 242.0, 244.0))
    amount = np.linspace(0, 3, 7, dtype=np.float32)[None]
    none = np.zeros_like(amount)

    by_h, by_e = stain_image(amount, none, stain), stain_image(none, amount, stain)

    assert by_h[0, 0].tolist() == by_e[0, 0].tolist() == [243, 242, 244]
    assert (np.diff(by_h[0].astype(int), axis=0) < 0).all()
    assert (np.diff(by_e[0].astype(int), axis=0) < 0).all()


def test_stained_light_follows_beer_and_lambert():
    stain = draw_stain(np.random.default_rng(1))
    rng = np.random.default_rng(2)
    h, e = rng.uniform(0, 2, (2, 30, 40)).astype(np.float32)

    image = stain_image(h, e, stain).astype(float)

    density = h[..., None] * np.array(stain.haematoxylin) + e[..., None] * np.array(stain.eosin)
    expected = np.array(stain.white) * np.exp(-density)
    assert np.abs(image - expected).max() < 4, "amounts have 8 bits"


def test_batches_differ_in_stain_and_glass_is_nearly_white():
    stains = [draw_stain(np.random.default_rng(i)) for i in range(20)]

    assert len({s.haematoxylin for s in stains}) == 20
    for stain in stains:
        assert min(stain.white) > 235
        assert max(stain.white) - min(stain.white) < 0.05 * 255


@pytest.mark.parametrize("size", [(31, 17), (200, 300)], ids=str)
def test_fields_have_the_size_asked_for(size):
    rng = np.random.default_rng(0)

    fibres, direction = draw_fibres(rng, size, px_um=1.0)
    noise = smooth_noise(rng, size, cell_px=9, octaves=3)

    assert fibres.shape == direction.shape == noise.shape == size[::-1]
    assert np.abs(direction).max() <= np.pi + 1e-6


def test_fibres_change_less_along_than_across_them():
    fibres, direction = draw_fibres(np.random.default_rng(0), (400, 400), px_um=1.0)
    y, x = np.mgrid[20:380, 20:380]

    def change(angle):
        dx, dy = np.rint(3 * np.cos(angle)).astype(int), np.rint(3 * np.sin(angle)).astype(int)
        return np.abs(fibres[y + dy, x + dx] - fibres[y, x]).mean()

    along = direction[20:380, 20:380]
    assert change(along) < 0.75 * change(along + np.pi / 2)


def test_a_polygon_is_filled_in_row_column_order():
    mask = fill_polygon((6, 4), [(3, 0), (5, 0), (5, 1), (3, 1)])

    assert mask.shape == (4, 6)
    assert np.argwhere(mask).tolist() == [[0, 3], [0, 4], [0, 5], [1, 3], [1, 4], [1, 5]]
