"""OME-TIFF heatmaps, read back by ourselves and by tifffile."""

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.contracts import Heatmap
from wsi_pipeline.errors import HeatmapError
from wsi_pipeline.heatmap_files import build_pyramid, read_heatmap, write_heatmap


def make_heatmap(height=600, width=900, seed=0):
    values = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    values[: height // 3, : width // 4] = np.nan
    return Heatmap(values, (64, 32), (width * 64 - 5, height * 32 - 7))


@pytest.mark.parametrize("shape", [(600, 900), (1, 1), (3, 70), (256, 257)])
def test_heatmap_written_is_heatmap_read(tmp_path, shape):
    heatmap = make_heatmap(*shape)
    write_heatmap(tmp_path / "a.ome.tif", heatmap, mpp=(0.25, 0.26), name="a")

    back = read_heatmap(tmp_path / "a.ome.tif")

    np.testing.assert_array_equal(back.values, heatmap.values)
    assert (back.pixel_l0, back.slide_size) == (heatmap.pixel_l0, heatmap.slide_size)


def test_file_is_a_float32_deflate_pyramid_with_physical_size(tmp_path):
    heatmap = make_heatmap()
    write_heatmap(tmp_path / "a.ome.tif", heatmap, mpp=(0.25, 0.5), name='sl<i>de "1" µ')

    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tiff:
        assert tiff.is_ome
        series = tiff.series[0]
        assert (series.axes, series.dtype, series.shape) == ("YX", np.float32, (600, 900))
        assert [level.shape for level in series.levels] == [(600, 900), (300, 450), (150, 225)]
        page = tiff.pages.first
        assert page.is_tiled
        assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        pixels = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]
        assert pixels["Name"] == 'sl<i>de "1" µ'
        assert (pixels["Pixels"]["PhysicalSizeX"], pixels["Pixels"]["PhysicalSizeY"]) == (16, 16)
        assert pixels["Pixels"]["PhysicalSizeXUnit"] == "µm"
        # 16 µm = 625 pixels per cm
        assert page.get_resolution("CENTIMETER") == (625, 625)
        assert not {"DateTime", "Software", "HostComputer"} & {tag.name for tag in page.tags}


@settings(deadline=None, max_examples=30)
@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_pyramid_averages_the_scored_pixels(height, width, seed):
    rng = np.random.default_rng(seed)
    values = rng.random((height, width)).astype(np.float32)
    values[rng.random(values.shape) < 0.5] = np.nan

    levels = build_pyramid(values)

    assert len(levels) == (1 if height == width == 1 else 2)
    for row, column in np.ndindex(*levels[-1].shape) if len(levels) > 1 else ():
        block = values[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        block = block[~np.isnan(block)]
        expected = block.mean() if block.size else np.nan
        np.testing.assert_allclose(levels[1][row, column], expected, rtol=1e-6)


def test_equal_heatmaps_give_equal_bytes(tmp_path):
    for name in ("a.ome.tif", "b.ome.tif"):
        write_heatmap(tmp_path / name, make_heatmap(), mpp=(0.25, 0.25), name="slide")

    assert (tmp_path / "a.ome.tif").read_bytes() == (tmp_path / "b.ome.tif").read_bytes()


def test_foreign_damaged_and_missing_files_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "foreign.tif", np.zeros((4, 4), np.float32))
    write_heatmap(tmp_path / "whole.ome.tif", make_heatmap(), mpp=(0.25, 0.25), name="a")
    whole = (tmp_path / "whole.ome.tif").read_bytes()
    (tmp_path / "cut.ome.tif").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.ome.tif").write_text("no tiff")

    for name in ("foreign.tif", "cut.ome.tif", "text.ome.tif"):
        with pytest.raises(HeatmapError, match=f"{name}: not a heatmap"):
            read_heatmap(tmp_path / name)
    with pytest.raises(HeatmapError, match="no such heatmap"):
        read_heatmap(tmp_path / "absent.ome.tif")


def test_senseless_values_and_resolution_are_refused(tmp_path):
    heatmap = make_heatmap(4, 4)
    with pytest.raises(HeatmapError, match="microns per pixel"):
        write_heatmap(tmp_path / "a.ome.tif", heatmap, mpp=(0.0, 0.25), name="a")
    wide = Heatmap(heatmap.values.astype(np.float64), (1, 1), (4, 4))  # type: ignore[arg-type]
    with pytest.raises(HeatmapError, match="float32"):
        write_heatmap(tmp_path / "a.ome.tif", wide, mpp=(0.25, 0.25), name="a")
    assert list(tmp_path.iterdir()) == []
