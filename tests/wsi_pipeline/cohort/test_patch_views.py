"""Patches that share pixels are those that are read one by one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import slides
from tiling.build import tile_slide
from tiling.contracts import TileConfig
from tiling.errors import SlideError
from tiling.readers.tiled_tiff_reader import TiledTiffReader
from tiling.store import PatchStore
from tiling.strips import plan_strips
from wsi_pipeline.cohort.data import read_batch, read_views, to_unit_range
from wsi_pipeline.cohort.patch_views import PatchViews

CPU = torch.device("cpu")
PATCH = 64


def cut(folder: Path, *, stride: int, target_mpp: float = 0.5, store: str = "coords") -> PatchStore:
    levels = [slides.tissue(643, 517), slides.tissue(160, 129, seed=1)]
    path = slides.write_slide(folder / "a.tif", levels, compression="jpeg", mpp=0.5)
    config = TileConfig(patch_px=PATCH, stride_px=stride, target_mpp=target_mpp, store=store)
    tile_slide(path, folder / "a.zarr", config=config)
    return PatchStore.open(folder / "a.zarr", slide_path=path)


@pytest.mark.parametrize("stride", [17, 32, 64, 80])
def test_views_are_the_patches_read_one_by_one(tmp_path: Path, stride: int):
    with cut(tmp_path, stride=stride) as store:
        rng = np.random.default_rng(0)
        chosen = np.flatnonzero(rng.random(len(store)) < 0.7)[:60]
        for rows in (np.arange(min(40, len(store))), chosen, rng.permutation(chosen), chosen[:1]):
            batch, views = read_batch(store, rows), read_views(store, rows)
            expected = to_unit_range(batch.pixels, CPU)
            assert torch.equal(views.pixels.floats(), expected)
            assert views.readable.all()
            out = torch.empty(len(rows), PATCH, PATCH, 3)
            views.pixels._fill_by_torch(out)  # as on a GPU
            assert torch.equal(out.permute(0, 3, 1, 2), expected)


def test_overlapping_neighbours_hold_each_pixel_once(tmp_path: Path):
    with cut(tmp_path, stride=32) as store:
        in_a_row = np.flatnonzero(store.coords[:, 1] == store.coords[0, 1])[:8]
        views = read_views(store, in_a_row).pixels
    width = int(np.ptp(store.coords[in_a_row, 0])) + PATCH
    assert views.memory.numel() == 3 * PATCH * width < 3 * PATCH**2 * len(in_a_row)


@pytest.mark.parametrize("options", [{"target_mpp": 0.7}, {"store": "patches"}])
def test_resampled_and_stored_patches_share_nothing(tmp_path: Path, options):
    with cut(tmp_path, stride=64, **options) as store:
        rows = np.arange(5)
        assert store.plan_strips(rows) is None
        expected = to_unit_range(read_batch(store, rows).pixels, CPU)
        assert torch.equal(read_views(store, rows).pixels.floats(), expected)


def test_a_patch_that_cannot_be_decoded_costs_no_other_one(tmp_path: Path, monkeypatch):
    with cut(tmp_path, stride=32) as store:
        rows = np.arange(12)
        expected = to_unit_range(read_batch(store, rows).pixels, CPU)
        bad = store.coords[3]
        read = TiledTiffReader._read_into

        def fail_there(self, out, location, level):
            inside = location[1] == bad[1] and location[0] <= bad[0] + 40
            if inside and location[0] + out.shape[1] > bad[0] + 40:
                raise SlideError("damaged")
            read(self, out, location, level)

        monkeypatch.setattr(TiledTiffReader, "_read_into", fail_there)
        found = read_views(store, rows)
        lost = [
            row
            for row in rows
            if store.coords[row, 1] == bad[1]
            and store.coords[row, 0] <= bad[0] + 40 < store.coords[row, 0] + PATCH
        ]
        assert 0 < len(lost) < 12
        assert np.flatnonzero(~found.readable).tolist() == lost
        assert torch.equal(found.pixels.floats(), expected[torch.from_numpy(found.readable)])
        assert store.unreadable[lost].all()


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=1, max_size=12),
    st.integers(1, 6),
)
def test_any_corners_are_views_of_their_strips(corners, side):
    image = np.random.default_rng(0).integers(0, 256, (10, 40, 3), np.uint8)
    places = np.array(corners, np.int64)
    plan = plan_strips(places, side)
    memory = np.zeros(plan.n_bytes, np.uint8)
    for strip in plan.strips:
        x, y = strip.corner
        strip.view(memory, side)[:] = image[y : y + side, x : x + strip.width]
    views = PatchViews(torch.from_numpy(memory), plan.first, plan.pitch, (side, side, 3))
    patches = np.stack([image[y : y + side, x : x + side] for x, y in corners])
    expected = to_unit_range(torch.from_numpy(patches), CPU)
    assert torch.equal(views.floats(), expected)
    out = torch.empty(len(corners), side, side, 3)
    views._fill_by_torch(out)
    assert torch.equal(out.permute(0, 3, 1, 2), expected)
    assert torch.equal(views[1:].floats(), expected[1:])
