"""A drawn slide is a slide to OpenSlide: levels, resolution and pixels."""

import re

import numpy as np
import openslide
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.demo.pyramid import shrink, write_pyramid


def smooth_image(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    channels = (x * 255 / width, y * 255 / height, 128 + 100 * np.sin((x + y) / 40))
    return np.stack(channels, axis=-1).astype(np.uint8)


def read_level(slide: openslide.OpenSlide, level: int) -> np.ndarray:
    region = slide.read_region((0, 0), level, slide.level_dimensions[level])
    assert region.getextrema()[3] == (255, 255), "every pixel is stored"
    return np.asarray(region.convert("RGB"))


@pytest.mark.parametrize("size", [(701, 903), (256, 512), (200, 170)], ids=str)
def test_openslide_reads_what_was_written(tmp_path, size):
    image = smooth_image(*size)

    path = write_pyramid(tmp_path / "a.tif", image, mpp=0.5)

    with openslide.OpenSlide(path) as slide:
        height, width = size
        assert slide.level_dimensions == tuple((width // d, height // d) for d in (1, 4, 16))
        for level, downsample in enumerate((1, 4, 16)):
            error = np.abs(read_level(slide, level).astype(int) - shrink(image, downsample))
            assert error.mean() < 6, "what JPEG loses where colour is steep"
            assert error[:, -1].mean() < 10, "the right edge is not smeared with black"
            assert error[-1].mean() < 10, "nor the lower one"


@pytest.mark.parametrize("mpp", [0.243, 0.5, 0.2501])
def test_the_resolution_is_reported_in_microns(tmp_path, mpp):
    path = write_pyramid(tmp_path / "a.tif", smooth_image(64, 64), mpp=mpp)

    with openslide.OpenSlide(path) as slide:
        for name in ("openslide.mpp-x", "openslide.mpp-y"):
            assert float(slide.properties[name]) == pytest.approx(mpp, rel=1e-6)


def test_the_same_picture_gives_the_same_bytes(tmp_path):
    image = smooth_image(300, 300)

    first = write_pyramid(tmp_path / "a.tif", image, mpp=0.5).read_bytes()
    second = write_pyramid(tmp_path / "b.tif", image, mpp=0.5).read_bytes()

    assert first == second


def test_an_empty_level_is_left_out(tmp_path):
    path = write_pyramid(tmp_path / "a.tif", smooth_image(20, 9), mpp=0.5)

    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == ((9, 20), (2, 5))


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 5), st.integers(0, 99))
def test_shrink_is_the_mean_of_whole_squares(height, width, downsample, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)

    small = shrink(image, downsample)

    assert small.shape == (height // downsample, width // downsample, 3)
    for row in range(small.shape[0]):
        for column in range(small.shape[1]):
            block = image[row * downsample :, column * downsample :][:downsample, :downsample]
            expected = np.floor(block.reshape(-1, 3).mean(axis=0) + 0.5)
            assert small[row, column].tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((8, 8), np.uint8)}, "(8, 8) uint8"),
        ({"image": np.zeros((8, 8, 3), np.float32)}, "float32"),
        ({"image": np.zeros((0, 8, 3), np.uint8)}, "with pixels"),
        ({"mpp": 0.0}, "got 0.0"),
        ({"mpp": float("nan")}, "got nan"),
        ({"downsamples": (4, 1)}, "ascend from 1"),
        ({"downsamples": ()}, "ascend from 1"),
        ({"tile_px": 100}, "multiple of 16"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_makes_no_slide_is_refused(tmp_path, change, message):
    given_values = {"image": smooth_image(64, 64), "mpp": 0.5, **change}
    image = given_values.pop("image")

    with pytest.raises(ValueError, match=re.escape(message)):
        write_pyramid(tmp_path / "a.tif", image, **given_values)

    assert list(tmp_path.iterdir()) == []
