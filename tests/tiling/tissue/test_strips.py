"""Tissue found by strips is the tissue found on the whole picture, to the pixel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tests.helpers import thumbnails, whole_tissue
from tiling.contracts import TissueConfig
from tiling.tissue import colour
from tiling.tissue.mask import find_kind_and_tissue
from tiling.tissue.objects import find_objects
from tiling.tissue.summed_mask import SummedMask

CONFIG = TissueConfig()


def check_equal(picture, mpp, config=CONFIG, threads=1):
    expected = whole_tissue.segment_tissue(picture, mpp=mpp, config=config)
    kind, found = find_kind_and_tissue(picture, mpp=mpp, config=config, threads=threads)
    np.testing.assert_array_equal(found, expected)
    return kind, found


@pytest.fixture(autouse=True)
def narrow_bands(monkeypatch):
    monkeypatch.setattr(colour, "BAND_PX", 2**10)


@pytest.mark.parametrize("mpp", [16.0, 40.0])
@pytest.mark.parametrize("ink", [None, "blue", "red", "black", "green"])
@pytest.mark.parametrize("stain", list(thumbnails.STAINS)[:2])
def test_a_drawn_slide(stain, ink, mpp):
    scene = thumbnails.draw_scene(stain, mpp=mpp)
    picture = scene.rgb.copy()
    if ink:
        colours = {"blue": (40, 70, 180), "red": (205, 35, 45), "black": (30, 30, 34)}
        picture[10:16, 5:-5] = colours.get(ink, (20, 120, 60))
        picture[picture.shape[0] // 2 :, 20:25] = picture[12, 12]
    kind, found = check_equal(picture, (mpp, mpp), threads=2)
    assert kind == "stained"
    assert found.any()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_picture(data):
    """Blocks of random colours, bright or dark, coloured or grey, of any size."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    height, width = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    side = data.draw(st.sampled_from([1, 2, 5, 11]))
    low, high = data.draw(st.sampled_from([(0, 256), (200, 256), (0, 60), (100, 256), (0, 20)]))
    channels = data.draw(st.sampled_from([1, 3, 3]))
    blocks = rng.integers(low, high, (-(-height // side), -(-width // side), channels), np.uint8)
    picture = np.kron(blocks, np.ones((side, side, 1), np.uint8))[:height, :width]
    picture = np.ascontiguousarray(np.broadcast_to(picture, (height, width, 3)))
    if data.draw(st.booleans()):  # on glass
        glass = rng.random(picture.shape[:2]) < 0.7
        picture = np.where(ndimage.median_filter(glass, 5)[..., None], np.uint8(244), picture)
    mpp = (data.draw(st.sampled_from([2.0, 8.0, 30.0])), data.draw(st.sampled_from([8.0, 24.0])))
    config = TissueConfig(
        min_object_um2=data.draw(st.sampled_from([0.0, 1e3, 1e5])),
        max_hole_um2=data.draw(st.sampled_from([0.0, 1e3, 1e5])),
    )
    check_equal(picture, mpp, config)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_objects_are_those_that_scipy_finds(data):
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    mask = rng.random((height, width)) < data.draw(st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]))
    value = data.draw(st.booleans())
    labels, n_objects = ndimage.label(mask == value)
    found = find_objects(mask, value=value)
    assert len(found.n_px) == n_objects
    for number in range(n_objects):
        painted = np.zeros_like(mask)
        found.paint(painted, np.arange(n_objects) == number, value=True)
        (at,) = np.unique(labels[painted])
        np.testing.assert_array_equal(painted, labels == at)
        assert found.n_px[number] == painted.sum()
        edges = [painted[0], painted[-1], painted[:, 0], painted[:, -1]]
        assert found.at_border()[number] == np.concatenate(edges).any()


def test_a_spiral_is_one_object():
    """Its runs are joined one after the other: rounds must not grow with their number."""
    side = 101
    mask = np.zeros((side, side), np.bool_)
    for ring in range(0, side // 2, 2):
        mask[ring, max(0, ring - 1) : side - ring] = True
        mask[ring : side - ring, side - 1 - ring] = True
        mask[side - 1 - ring, ring : side - ring] = True
        mask[ring + 2 : side - ring, ring] = True
    assert ndimage.label(mask)[1] == 1
    assert len(find_objects(mask).n_px) == 1


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_shares_of_tiles_equal_the_mean_of_their_pixels(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    mask = rng.random(data.draw(st.tuples(st.integers(1, 80), st.integers(1, 80)))) < 0.5
    whole_px, n = data.draw(st.sampled_from([1, 4])), 50
    corners = rng.integers(-3, 90, (n, 2))
    side = data.draw(st.tuples(st.integers(1, 70), st.integers(1, 70)))
    found = SummedMask(mask, (whole_px, whole_px)).tile_fraction(
        corners * whole_px, (side[0] * whole_px, side[1] * whole_px)
    )
    padded = np.pad(mask, ((3, 200), (3, 200)))
    for (x, y), share in zip(corners.tolist(), found, strict=True):
        part = padded[y + 3 : y + 3 + side[1], x + 3 : x + 3 + side[0]]
        assert share == np.float32(part.sum() / (side[0] * side[1]))
