"""PatchNet's maps and histograms (paper 1, 3.4; paper 2, appendix B)."""

import numpy as np
import pytest
import torch
from PIL import Image

from wsi_pipeline.errors import ModelError
from wsi_pipeline.explain import load_method
from wsi_pipeline.explain.patchnet import (
    PatchNetMaps,
    average_over_patches,
    count_histograms,
    rescale_filters,
)
from wsi_pipeline.models.patchnet import PatchNet


def some_maps(filters=64, height=9, width=12):
    random = np.random.default_rng(0)
    heatmap = random.random((height, width)).astype(np.float32)
    raw = random.uniform(-1, 1, (filters, height, width)).astype(np.float32)
    raw[3] = 0.25  # a filter with the same value everywhere
    return PatchNetMaps(heatmap, raw)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_has_one_global_map_and_one_per_filter(channels):
    model = PatchNet(m=5, channels=channels, filters=6, depth=2).eval()
    image = np.random.default_rng(0).random((7, 10, channels), np.float32)
    (found,) = load_method("patchnet").explain(model, image[None])
    heatmap, filters = model.dense_map(torch.from_numpy(image).permute(2, 0, 1))

    assert np.array_equal(found.values, heatmap.numpy())  # Q itself, not rescaled
    assert np.array_equal(found.details.raw, filters.numpy())
    assert found.details.raw.shape == (6, 7, 10)


def test_an_image_of_another_number_of_channels_is_refused():
    with pytest.raises(ModelError, match="takes images of 3 channels, these have 1"):
        load_method("patchnet")(PatchNet(m=5, filters=2, depth=1), np.zeros((1, 8, 8, 1)))


def test_each_filter_is_stretched_by_itself_and_a_constant_one_is_grey():
    maps = some_maps()
    spans = [(m.min(), m.max()) for m in maps.filters]
    assert spans[3] == (0.5, 0.5)
    assert all(span == (0, 1) for i, span in enumerate(spans) if i != 3)
    assert maps.raw[3, 0, 0] == np.float32(0.25)  # the raw maps are kept as they are


def test_a_filter_that_is_constant_but_for_rounding_is_grey():
    noise = np.random.default_rng(0).uniform(0, 5e-5, (1, 8, 8))
    assert (rescale_filters(0.9 + noise) == 0.5).all()
    assert rescale_filters(0.9 + 10 * noise).std() > 0.1


def test_there_are_65_histograms_that_count_every_pixel():
    counts = some_maps(height=9, width=12).histograms
    assert counts.shape == (65, 256)
    assert (counts.sum(axis=1) == 9 * 12).all()


def test_the_bins_are_those_of_numpy():
    maps = np.random.default_rng(1).random((3, 20, 20))
    expected = [np.histogram(m, bins=256, range=(0, 1))[0] for m in maps]
    assert np.array_equal(count_histograms(maps), expected)


def test_the_mean_over_patches_keeps_a_constant_and_is_the_plain_double_loop():
    assert average_over_patches(np.full((6, 9), 0.3), 5) == pytest.approx(0.3)
    q = np.random.default_rng(2).random((6, 7))
    expected = [
        [q[max(0, r - 1) : r + 2, max(0, c - 1) : c + 2].mean() for c in range(7)] for r in range(6)
    ]
    assert average_over_patches(q, 3) == pytest.approx(np.array(expected))


def test_the_mean_over_patches_wants_an_odd_side():
    with pytest.raises(ModelError, match="odd, got m=4"):
        average_over_patches(np.zeros((4, 4)), 4)


def test_the_files_hold_what_was_computed(tmp_path):
    maps = some_maps()
    files = maps.write(tmp_path, "nucleus_7")
    assert [f.name for f in files] == ["nucleus_7.npz", "nucleus_7_filters.png"]
    with np.load(tmp_path / "nucleus_7.npz") as arrays:
        assert np.array_equal(arrays["heatmap"], maps.heatmap)
        assert np.array_equal(arrays["filters_raw"], maps.raw)
        assert np.array_equal(arrays["filters"], maps.filters)
        assert np.array_equal(arrays["histograms"], maps.histograms)
        assert arrays["bin_edges"].shape == (257,)
    first = [f.read_bytes() for f in files]
    assert first == [f.read_bytes() for f in some_maps().write(tmp_path, "again")]


def test_the_sheet_shows_every_map(tmp_path):
    maps = some_maps(height=96, width=128)
    maps.write(tmp_path, "a")
    sheet = np.asarray(Image.open(tmp_path / "a_filters.png"))
    corner = sheet[6 + 12 :, 6:][:96, :128]  # the first cell, below its title
    assert np.array_equal(corner, np.round(maps.heatmap * 255).astype(np.uint8))
    assert sheet.shape[1] > 13 * 128  # 65 = 5 rows of 13
    assert sheet.shape[0] > 5 * 96
