"""A slide whose scanned part lies inside it (openslide.bounds): everything over the same tissue.

The slide is a drawn Leica SCN, read by OpenSlide: the oracle of where a pixel lies.
"""

import json
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from tests.helpers.odd_slide import make_job
from tests.helpers.slides import halve, tissue
from tiling.build import tile_slide
from tiling.contracts import TileConfig, TissueConfig
from tiling.store import PatchStore
from wsi_pipeline.contracts import Scores
from wsi_pipeline.exports import load_format
from wsi_pipeline.exports.base import ExportSlide
from wsi_pipeline.heatmaps.files import write_heatmap
from wsi_pipeline.inference.scores import clam_attributes

MPP = 0.5
OFFSET, SCANNED, SIZE = (301, 157), (420, 340), (811, 599)  # (x, y) and (width, height), px
DARK = (180, 140, 60)  # x, y, side of what is suspicious, px from the scanned part's corner


def write_leica(path: Path) -> Path:
    """A Leica SCN of one scanned part on a larger slide; lengths in nm, as the scanner has them."""
    pixels = tissue(*SCANNED)
    x, y, side = DARK
    pixels[y : y + side, x : x + side] = 40
    levels = [pixels, halve(pixels)]
    nm = int(MPP * 1000)
    dimensions = "".join(
        f'<dimension ifd="{i}" r="{i}" sizeX="{level.shape[1]}" sizeY="{level.shape[0]}"/>'
        for i, level in enumerate(levels)
    )
    description = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection sizeX="{SIZE[0] * nm}" sizeY="{SIZE[1] * nm}"><image>'
        f"<pixels>{dimensions}</pixels>"
        f'<view sizeX="{SCANNED[0] * nm}" sizeY="{SCANNED[1] * nm}"'
        f' offsetX="{OFFSET[0] * nm}" offsetY="{OFFSET[1] * nm}"/>'
        "<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings>"
        "<illuminationSettings><illuminationSource>brightfield</illuminationSource>"
        "</illuminationSettings></scanSettings></image></collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for number, level in enumerate(levels):
            tiff.write(
                level,
                tile=(64, 64),
                photometric="rgb",
                compression="deflate",
                description=description if number == 0 else None,
                metadata=None,
                resolution=(1e4 / MPP / 2**number,) * 2,
                resolutionunit="CENTIMETER",
                subfiletype=int(number > 0),
            )
    return path


@pytest.fixture(scope="module")
def cropped(tmp_path_factory) -> tuple[Path, ExportSlide]:
    """The slide's file, and its patches scored by how dark they are."""
    folder = tmp_path_factory.mktemp("leica")
    path = write_leica(folder / "leica.scn")
    tissue_config = TissueConfig(mpp=2.0, min_object_um2=100.0)
    config = TileConfig(target_mpp=0.7, patch_px=32, stride_px=16, tissue=tissue_config)
    tile_slide(path, folder / "leica.zarr", slide_id="leica", config=config, threads=1)
    with PatchStore.open(folder / "leica.zarr", slide_path=path) as store:
        darkness = 1 - store.read(np.arange(len(store.coords))).mean(axis=(1, 2, 3)) / 255
        scores = Scores(
            np.asarray(store.coords, np.int64),
            darkness.astype(np.float32),
            {},
            clam_attributes(store.info, store.geometry),
        )
        return path, ExportSlide(store.info, store.geometry, "dark", scores)


def looks_dark(path: Path, x: float, y: float) -> bool:
    """What OpenSlide shows there, in the frame of the whole slide."""
    with openslide.OpenSlide(path) as slide:
        assert slide.dimensions == SIZE
        assert int(slide.properties["openslide.bounds-x"]) == OFFSET[0]
        region = np.asarray(slide.read_region((int(x), int(y)), 0, (1, 1)).convert("RGB"))
    return bool(region.max() < 60)


@pytest.mark.parametrize("overlap", ["mean", "max", "centre"])
def test_the_hottest_heatmap_pixel_lies_over_the_dark_square(cropped, tmp_path, overlap):
    path, slide = cropped
    heatmap = make_job(slide, overlap=overlap).heatmap
    write_heatmap(tmp_path / "a.ome.tif", heatmap, mpp=slide.info.mpp, name="a")
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tiff:
        values = tiff.series[0].asarray()
        pixels = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
    hottest = np.argwhere(values == np.nanmax(values)).mean(axis=0)  # with max, many are equal
    pixel_um = np.array([pixels["PhysicalSizeX"], pixels["PhysicalSizeY"]])
    x, y = (hottest[::-1] + 0.5) * pixel_um / slide.info.mpp
    assert looks_dark(path, x, y)


@pytest.mark.parametrize("origin", ["level0", "bounds"])
def test_qupath_finds_the_dark_square_where_it_counts_from(cropped, tmp_path, origin):
    path, slide = cropped
    assert slide.info.bounds is not None
    (written,), line = load_format("qupath")(make_job(slide, origin=origin), tmp_path)
    assert ("use --set origin=bounds" in line) == (origin == "level0")
    features = json.loads(written.read_text())["features"]
    best = max(features, key=lambda feature: feature["properties"]["measurements"]["score"])
    centre = np.mean(best["geometry"]["coordinates"][0][:4], axis=0)
    # With bounds, QuPath's (0, 0) is the scanned part's corner.
    shown_at = centre + (OFFSET if origin == "bounds" else (0, 0))
    assert looks_dark(path, *shown_at)
