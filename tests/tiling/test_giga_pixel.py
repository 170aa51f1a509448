"""Slides of 23 gigapixels: memory bounded, cost that of the tissue."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shapely
import zarr
from zarr.codecs import Crc32cCodec

from tests.helpers import giga, slides
from tiling import build
from tiling.blocks import BlockSlide, group_tiles
from tiling.build import tile_slide
from tiling.contracts import TileConfig
from tiling.geometry import resolve_geometry
from tiling.patches import read_patch
from tiling.slide import open_slide
from tiling.store import PatchStore

CONFIG = TileConfig(target_mpp=0.25, patch_px=256)


def square(x0, y0, side):
    return lambda x, y: (x >= x0) & (x < x0 + side) & (y >= y0) & (y < y0 + side)


class CountingSlide:
    """Counts level-0 pixels asked for."""

    def __init__(self, slide):
        self._slide, self.n_px = slide, 0

    def __getattr__(self, name):
        return getattr(self._slide, name)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._slide.close()

    def read_region(self, location, level, size):
        if level == 0:
            self.n_px += size[0] * size[1]
        return self._slide.read_region(location, level, size)


def pixels_read(folder: Path, size, monkeypatch, *, tissue=4096) -> tuple[int, int]:
    path = giga.write_giga(
        folder / f"{size[0]}.tif", size, is_tissue=square(4096, 4096, tissue), n_levels=4
    )
    opened = []

    def opening(*args, **options):
        opened.append(CountingSlide(open_slide(*args, **options)))
        return opened[-1]

    monkeypatch.setattr(build, "open_slide", opening)
    summary = tile_slide(path, folder / "s.zarr", slide_id="s", config=CONFIG)
    return summary.n_patches, opened[0].n_px


def test_level_0_is_read_where_tissue_is(tmp_path: Path, monkeypatch):
    small = pixels_read(tmp_path, (16_385, 16_385), monkeypatch)
    large = pixels_read(tmp_path, (32_769, 49_153), monkeypatch)  # six times the glass
    assert small[0] >= 16**2
    assert large == small
    assert small[1] <= small[0] * 256**2 * 1.1
    n_patches, n_px = pixels_read(tmp_path, (16_385, 16_384), monkeypatch, tissue=8192)
    assert n_px / small[1] == pytest.approx(n_patches / small[0], rel=0.1)


@pytest.mark.parametrize("share", [1.0, 0.6, 0.1])
@pytest.mark.parametrize("stride", [32, 64, 97])
def test_blocks_hold_each_tile_once_and_read_no_more_than_tiles_do(share, stride):
    rng = np.random.default_rng(3)
    grid = np.stack(np.meshgrid(np.arange(20), np.arange(15)), axis=-1).reshape(-1, 2) * stride
    coords = grid[rng.random(len(grid)) < share]
    groups = group_tiles(coords, tile_l0=(64, 64), side_l0=(256, 256))
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(coords)))
    for rows in groups:
        width, height = np.ptp(coords[rows], axis=0) + 64
        assert width * height <= len(rows) * 64**2
        assert width <= 256 + 64
        assert height <= 256 + 64


def test_no_tiles_no_blocks():
    assert group_tiles(np.zeros((0, 2), np.int64), tile_l0=(8, 8), side_l0=(64, 64)) == []


@pytest.mark.parametrize("target_mpp", [0.5, 0.7, 1.0, 1.9, 2.0, 3.3])
@pytest.mark.parametrize("odd", [0, 3])
def test_a_patch_from_a_block_is_the_patch_from_the_slide(tmp_path: Path, target_mpp, odd):
    pixels = slides.noise(512 + odd, 512 + odd)
    levels = [pixels, slides.halve(pixels, 1), slides.halve(pixels, 2)]
    path = slides.write_slide(tmp_path / "s.tif", levels)
    config = TileConfig(target_mpp=target_mpp, patch_px=24, stride_px=12)
    with open_slide(path) as slide:
        geometry = resolve_geometry(config, slide_mpp=slide.mpp)
        corners = [5 + geometry.stride_l0 * i for i in range(4)] + [500]  # also over the edge
        coords = np.array([(x, y) for y in corners for x in corners])
        block = BlockSlide(slide, np.arange(len(coords)), coords=coords, geometry=geometry)
        for x, y in coords.tolist():
            np.testing.assert_array_equal(
                read_patch(block, (x, y), geometry=geometry),
                read_patch(slide, (x, y), geometry=geometry),
            )


def test_shards_are_byte_for_byte_those_of_zarr(tmp_path: Path):
    path = giga.write_giga(tmp_path / "s.tif", (9000, 8000), is_tissue=square(0, 0, 6000))
    tile_slide(path, tmp_path / "s.zarr", slide_id="s", config=CONFIG, threads=2)
    ours = zarr.open_group(tmp_path / "s.zarr", mode="r")["patches"]
    assert ours.shape[0] % ours.shards[0]  # the last shard is short
    theirs = zarr.create_array(
        tmp_path / "z.zarr",
        shape=ours.shape,
        dtype="uint8",
        chunks=ours.chunks,
        shards=ours.shards,
        compressors=Crc32cCodec(),
        config={"write_empty_chunks": True},
    )
    step = ours.shards[0]
    for first in range(0, ours.shape[0], step):
        theirs[first : first + step] = ours[first : first + step]
    shards = sorted((tmp_path / "z.zarr").glob("c/*/0/0/0"))
    assert len(shards) > 1
    for shard in shards:
        name = shard.relative_to(tmp_path / "z.zarr")
        assert shard.read_bytes() == (tmp_path / "s.zarr" / "patches" / name).read_bytes()


MEASURED = """
import json, resource, sys
from pathlib import Path
from tiling.build import tile_slide
from tiling.contracts import TileConfig
summary = tile_slide(Path(sys.argv[1]), Path(sys.argv[2]), slide_id="s",
    config=TileConfig(target_mpp=0.25, patch_px=256), annotation_path=Path(sys.argv[3]),
    qc_path=Path(sys.argv[4]), threads=2)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"peak_mib": peak, "n": summary.n_patches, "positive": summary.n_positive}))
"""


@pytest.mark.slow
@pytest.mark.alone  # beside other processes its own pools are fuller: 1034 MiB were seen, 782 alone
def test_23_gigapixels_in_a_gibibyte(tmp_path: Path):
    inside = square(52_224, 108_544, 14_336)
    path = giga.write_giga(tmp_path / "s.tif", giga.FULL_SIZE, is_tissue=inside)
    assert path.stat().st_size < 4e6
    angle = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
    radius = 5000 + 300 * np.sin(90 * angle)
    ring = np.stack([59_000 + radius * np.cos(angle), 115_000 + radius * np.sin(angle)], axis=1)
    tumour = shapely.Polygon(ring)
    feature = {
        "type": "Feature",
        "properties": {"classification": {"name": "Tumor"}},
        "geometry": shapely.geometry.mapping(tumour),
    }
    collection = {"type": "FeatureCollection", "features": [feature]}
    (tmp_path / "a.geojson").write_text(json.dumps(collection), encoding="utf-8")
    names = [path, tmp_path / "s.zarr", tmp_path / "a.geojson", tmp_path / "qc.png"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, names)], check=True, capture_output=True
    )
    found = json.loads(done.stdout)
    assert found["peak_mib"] < 1024
    assert (tmp_path / "qc.png").stat().st_size > 1000
    with PatchStore.open(tmp_path / "s.zarr") as store:
        assert len(store) == found["n"] >= 56**2
        squares = shapely.box(*(store.coords + 64).T, *(store.coords + 192).T)
        np.testing.assert_array_equal(
            store.label == 1, shapely.area(shapely.intersection(squares, tumour)) > 0
        )
        middle = int(np.abs(store.coords - [59_000, 115_000]).sum(axis=1).argmin())
        assert np.ptp(store.read([middle])[0]) > 50  # tissue, not white


COORDINATES = """
import resource, sys
from pathlib import Path
from tiling.build import tile_slide
from tiling.contracts import TileConfig
config = TileConfig(target_mpp=0.5, patch_px=256, store="coords")
summary = tile_slide(sys.argv[1], sys.argv[2], slide_id="s", config=config, qc_path=sys.argv[3])
print(summary.n_patches, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
@pytest.mark.alone
def test_coordinates_of_a_large_overview_in_a_gibibyte(tmp_path: Path):
    """At 0.5 µm per pixel the picture that tissue is found on has 91 million pixels: 2.2 GiB."""
    inside = square(20_000, 20_000, 70_000)
    path = giga.write_giga(tmp_path / "s.tif", giga.FULL_SIZE, is_tissue=inside, mpp=0.5)
    command = [sys.executable, "-c", COORDINATES, path, tmp_path / "s.zarr", tmp_path / "qc.png"]
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True)
    n_patches, peak_mib = map(float, done.stdout.split())
    assert n_patches >= 270**2
    assert peak_mib < 1024
