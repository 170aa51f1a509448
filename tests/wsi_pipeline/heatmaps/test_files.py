"""OME-TIFF heatmaps, read back by ourselves and by tifffile."""

import warnings

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.contracts import Heatmap
from wsi_pipeline.errors import HeatmapError
from wsi_pipeline.heatmaps.files import build_pyramid, read_heatmap, write_heatmap
from wsi_pipeline.heatmaps.rasters import rasterise_scores


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


@settings(max_examples=30)
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


def test_a_tall_pyramid_is_the_same_as_one_made_at_once():
    """Levels are made in bands; a band's edge shows nowhere."""
    values = np.random.default_rng(0).random((1501, 3)).astype(np.float32)
    values[500:530] = np.nan
    padded = np.pad(values, ((0, 1), (0, 1)), constant_values=np.nan)
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing
        expected = np.nanmean(padded.reshape(751, 2, 2, 2), axis=(1, 3))

    np.testing.assert_allclose(build_pyramid(values)[1], expected, rtol=1e-6)


# ------------------------------------------------------------ as a viewer has it

# Slides: (width, height) level-0 px, and µm per px along x and y.
SLIDES = {
    "even": ((8192, 4096), (0.25, 0.25)),
    "odd-size": ((7919, 4583), (0.2431, 0.2431)),
    "odd-mpp": ((5003, 6007), (0.2273, 0.2511)),
    "smaller-than-two-patches": ((601, 977), (0.5021, 0.4987)),
}
STEPS = {"apart": 1, "half": 2, "third": 3}


def lay_hot_patch(slide, *, patch_um=128.0, steps=1, overlap="mean"):
    """A heatmap of a cold slide with one hot patch; gives it with the patch's rectangle."""
    size, mpp = slide
    patch = (round(patch_um / mpp[0]), round(patch_um / mpp[1]))
    stride = (patch[0] // steps, patch[1] // steps)
    x, y = (np.arange(0, s - p // 2, step) for s, p, step in zip(size, patch, stride, strict=True))
    coords = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2).astype(np.int64)
    scores = np.full(len(coords), 0.125, np.float32)
    hot = len(coords) * 2 // 3
    scores[hot] = 1.0
    scores[0] = np.nan
    heatmap = rasterise_scores(
        coords, scores, slide_size=size, patch_l0=patch, stride_l0=stride, overlap=overlap
    )
    return heatmap, (coords[hot], coords[hot] + patch)


def read_as_a_viewer(path):
    """Values and the pixel's size in µm (x, y), from the OME-TIFF itself."""
    with tifffile.TiffFile(path) as tiff:
        pixels = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
        values = tiff.series[0].asarray()
    assert (pixels["SizeY"], pixels["SizeX"]) == values.shape
    assert pixels["PhysicalSizeXUnit"] == pixels["PhysicalSizeYUnit"] == "µm"
    return values, (float(pixels["PhysicalSizeX"]), float(pixels["PhysicalSizeY"]))


@pytest.mark.parametrize("overlap", ["mean", "max", "centre"])
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("slide", SLIDES.values(), ids=SLIDES)
def test_the_hottest_pixel_lies_over_the_hottest_patch(tmp_path, slide, steps, overlap):
    """By the file's own physical size and origin, as QuPath and napari align it with the slide."""
    mpp, path = slide[1], tmp_path / "a.ome.tif"
    heatmap, (top_left, bottom_right) = lay_hot_patch(slide, steps=steps, overlap=overlap)
    write_heatmap(path, heatmap, mpp=mpp, name="a")

    values, pixel_um = read_as_a_viewer(path)
    row, column = np.unravel_index(np.nanargmax(values), values.shape)
    centre_um = (np.array([column, row]) + 0.5) * pixel_um
    centre_l0 = centre_um / mpp
    assert (top_left <= centre_l0).all()
    assert (centre_l0 < bottom_right).all()
    assert np.isnan(values[0, 0]) or steps > 1  # the unreadable patch; others may lie over it


@pytest.mark.parametrize("slide", SLIDES.values(), ids=SLIDES)
def test_the_heatmap_is_as_large_as_the_slide_to_within_a_pixel(tmp_path, slide):
    (size, mpp), path = slide, tmp_path / "a.ome.tif"
    heatmap, _ = lay_hot_patch(slide, steps=2)
    write_heatmap(path, heatmap, mpp=mpp, name="a")

    values, pixel_um = read_as_a_viewer(path)
    for axis in (0, 1):
        slide_um = size[axis] * mpp[axis]
        heatmap_um = values.shape[1 - axis] * pixel_um[axis]
        assert slide_um <= heatmap_um * (1 + 1e-12)
        assert heatmap_um - slide_um < pixel_um[axis]
        assert pixel_um[axis] == heatmap.pixel_l0[axis] * mpp[axis]  # exact, not rounded


def test_the_pyramid_is_where_qupath_and_napari_look_for_it(tmp_path):
    """One page in the main chain; its reduced levels are SubIFDs, tiled alike, float32."""
    heatmap, _ = lay_hot_patch(((60_001, 40_003), (0.25, 0.25)), patch_um=16, steps=1)
    write_heatmap(tmp_path / "a.ome.tif", heatmap, mpp=(0.25, 0.25), name="a")

    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tiff:
        assert len(tiff.pages) == 1
        levels = tiff.series[0].levels
        assert len(levels) >= 3
        for number, level in enumerate(levels):
            page = level.pages[0].aspage()
            assert page.tags["NewSubfileType"].value == int(number > 0)
            assert page.tags["SampleFormat"].value == tifffile.SAMPLEFORMAT.IEEEFP
            assert page.tags["BitsPerSample"].value == 32
            assert page.tilewidth % 16 == page.tilelength % 16 == 0
            expected = tuple(-(-side // 2**number) for side in levels[0].shape)
            assert level.shape == expected
        assert max(levels[-1].shape) <= 256
        top = zarr.open_group(tiff.series[0].aszarr(), mode="r")  # how napari opens it
        np.testing.assert_array_equal(top["0"][:], heatmap.values)
