"""Blurred HSV, against scikit-image."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.color import rgb2hsv

from tests.helpers import slides
from tiling.tissue import colour
from tiling.tissue.colour import (
    bands,
    hue_of,
    sample_saturation,
    saturation_and_value,
    smooth_rows,
)


def smooth_hsv(rgb, *, sigma, white=colour.WHITE):
    """Hue, saturation and value of a blurred picture, band by band."""
    parts = [smooth_rows(rgb, rows, sigma=sigma, white=white) for rows in bands(rgb.shape)]
    blurred = np.concatenate(parts, axis=1)
    return hue_of(blurred), *saturation_and_value(blurred)


@pytest.mark.parametrize("shape", [(1, 1), (7, 30), (61, 33)])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.3])
def test_the_blur_has_the_bits_of_scipys(shape, sigma, monkeypatch):
    """So that masks are the same as when scipy blurred."""
    monkeypatch.setattr(colour, "BAND_PX", 5 * shape[1])
    rgb, white = slides.noise(shape[1], shape[0]), (0.95, 0.9, 0.97)
    picture = np.moveaxis(rgb, -1, 0).astype(np.float32)
    picture /= np.array(white, np.float32).reshape(3, 1, 1) * 255
    expected = ndimage.gaussian_filter(picture, (0, sigma, sigma), mode="nearest")
    parts = [smooth_rows(rgb, rows, sigma=sigma, white=white) for rows in bands(rgb.shape)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), expected)
    for step in (1, 2, 5):
        np.testing.assert_array_equal(
            sample_saturation(rgb, step, sigma=sigma, white=white),
            saturation_and_value(expected)[0][::step, ::step],
        )


@pytest.mark.parametrize("shape", [(1, 1), (7, 30), (61, 33)])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.3])
def test_bands_give_the_whole_picture(shape, sigma, monkeypatch):
    monkeypatch.setattr(colour, "BAND_PX", 5 * shape[1])  # five rows at a time
    rgb = slides.noise(shape[1], shape[0])
    rgb[:2, :2] = 0
    blurred = ndimage.gaussian_filter(rgb / 255.0, (sigma, sigma, 0), mode="nearest")
    expected = np.moveaxis(rgb2hsv(blurred), -1, 0)
    for ours, theirs in zip(smooth_hsv(rgb, sigma=sigma), expected, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_grey_has_no_hue():
    hue, saturation, value = smooth_hsv(np.full((4, 5, 3), 51, np.uint8), sigma=1)
    assert not hue.any()
    assert not saturation.any()
    np.testing.assert_allclose(value, 0.2, rtol=1e-6)


def test_known_colours():
    colours = [(255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255)]
    for step, rgb in enumerate(colours):
        picture = np.broadcast_to(np.array(rgb, np.uint8), (3, 3, 3))
        hue, saturation, value = smooth_hsv(picture, sigma=1)
        np.testing.assert_allclose(hue, step / 6, atol=1e-6)
        np.testing.assert_allclose([saturation, value], 1, atol=1e-6)
