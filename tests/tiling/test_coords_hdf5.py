"""Coordinates of CLAM, TRIDENT and WSInfer, and tiling at them."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.helpers.slides import halve, tissue, write_slide
from tiling.build import tile_fingerprint, tile_slide
from tiling.contracts import TileConfig
from tiling.coords_hdf5 import find_coords, read_coords
from tiling.errors import GridError
from tiling.patches import read_patch
from tiling.slide import open_slide
from tiling.store import PatchStore

XY = [[130, 40], [10, 20], [200, 100]]  # in no order, on no lattice

# The attributes each tool writes in addition to those read here: they must not confuse.
CLAM = {"patch_size": 32, "patch_level": 1, "downsample": (2.0, 2.0), "level_dim": (200, 150)}
TRIDENT = {"patch_size": 32, "patch_size_level0": 64, "target_magnification": 10, "overlap": 0}
WSINFER = {"patch_size": 64, "patch_level": 0, "patch_spacing_um_px": 1.0}
TOOLS = {"clam": CLAM, "trident": TRIDENT, "wsinfer": WSINFER}


def write_coords(path: Path, attributes, coords=XY) -> Path:
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        found = file.create_dataset("coords", data=np.asarray(coords, np.int64))
        found.attrs.update(attributes)
    return path


@pytest.mark.parametrize("tool", TOOLS)
def test_each_tools_patches_are_as_large_as_it_says(tmp_path, tool):
    found = read_coords(write_coords(tmp_path / "a.h5", TOOLS[tool]))

    assert found.tool == tool
    assert found.patch_l0 == (64.0, 64.0)
    assert found.coords.tolist() == XY


@pytest.mark.parametrize(
    ("attributes", "missing"),
    [
        ({"patch_level": 0}, "patch_size"),
        ({"patch_size": 32}, "patch_level"),
        ({"patch_size": 32, "patch_level": 2}, "downsample"),
        ({"patch_spacing_um_px": 0.5}, "patch_size"),
    ],
)
def test_a_missing_attribute_is_named(tmp_path, attributes, missing):
    with pytest.raises(GridError, match=rf"a.h5: .* no attribute {missing}"):
        read_coords(write_coords(tmp_path / "a.h5", attributes))


@pytest.mark.parametrize("coords", [np.zeros((0, 2)), np.zeros(4), np.zeros((3, 3))])
def test_coords_of_another_shape_are_refused(tmp_path, coords):
    with pytest.raises(GridError, match=r"wanted \(N, 2\)"):
        read_coords(write_coords(tmp_path / "a.h5", CLAM, coords))


@pytest.mark.parametrize("wrong", [1.5, np.nan, np.inf, 1e300])
def test_positions_between_pixels_are_not_cut_off(tmp_path, wrong):
    path = tmp_path / "a.h5"
    for coords in ([[2.0, 1.0], [4.0, 0.0]], [[2.0, wrong], [4.0, 0.0]]):
        with h5py.File(path, "w") as file:
            file.create_dataset("coords", data=np.array(coords)).attrs.update(CLAM)
        if wrong not in coords[0]:
            assert read_coords(path).coords.tolist() == [[2, 1], [4, 0]]
    with pytest.raises(GridError, match=r"a\.h5: its coords \(float64\) are not all whole numbers"):
        read_coords(path)


def test_what_is_no_hdf5_is_refused(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"no")
    with pytest.raises(GridError, match=r"a\.h5: no coordinates can be read"):
        read_coords(tmp_path / "a.h5")


@pytest.mark.parametrize("name", ["s.h5", "s_patches.h5"])
def test_a_file_is_found_by_the_slides_id(tmp_path, name):
    write_coords(tmp_path / name, CLAM)

    assert find_coords(tmp_path, "s").name == name
    with pytest.raises(GridError, match=r"t: no coordinates .*t_patches\.h5"):
        find_coords(tmp_path, "t")


@pytest.fixture
def slide(tmp_path):
    pixels = tissue(400, 300)
    return write_slide(tmp_path / "s.tif", [pixels, halve(pixels)])


def cut(slide, folder, *, attributes, coords=XY, target_mpp=1.0):
    write_coords(folder / "other" / "s.h5", attributes, coords)
    config = TileConfig(target_mpp=target_mpp, patch_px=32, coords=folder / "other")
    tile_slide(slide, folder / "s.zarr", slide_id="s", config=config)
    return PatchStore.open(folder / "s.zarr")


@pytest.mark.parametrize("tool", TOOLS)
def test_a_slide_is_cut_where_the_other_tool_did_glass_and_all(slide, tmp_path, tool):
    with cut(slide, tmp_path, attributes=TOOLS[tool]) as store, open_slide(slide) as source:
        assert store.coords.tolist() == XY
        for row, (x, y) in enumerate(XY):
            expected = read_patch(source, (x, y), geometry=store.geometry)
            np.testing.assert_array_equal(store.read([row])[0], expected)
        assert store.tissue[1] < store.tissue[0]
        assert store.tiling["coords"] == "other"


def test_patches_of_another_size_are_refused_with_the_resolution_to_ask_for(slide, tmp_path):
    with pytest.raises(
        GridError, match=r"\(clam\).* 64 x 64 level-0 px, 32 x 32 µm.*target_mpp=1$"
    ):
        cut(slide, tmp_path, attributes=CLAM, target_mpp=0.5)


def test_where_x_and_y_differ_no_resolution_is_asked_for_that_cannot_help(tmp_path):
    """It asked for the target_mpp that was set."""
    path = write_slide(tmp_path / "s.tif", [tissue(400, 300)], mpp=(0.5, 0.6))
    with pytest.raises(GridError, match=r"32 x 38.4 µm.* no target_mpp fits.*0.5 x 0.6 µm per"):
        cut(path, tmp_path, attributes=CLAM)


@pytest.mark.parametrize("tool", TOOLS)
def test_both_sides_are_taken_where_a_file_has_them(tmp_path, tool):
    """https://github.com/mahmoodlab/CLAM and the others know squares only."""
    path = write_slide(tmp_path / "s.tif", [tissue(400, 300)], mpp=(0.5, 0.625))
    own = {**TOOLS[tool], "patch_l0": (64, 51)}  # 32 px of 1 µm: 64 x 51.2
    with cut(path, tmp_path, attributes=own) as store:
        assert store.coords.tolist() == XY
        assert (store.geometry.patch_l0, store.geometry.patch_l0_y) == (64, 51)


def test_a_side_rounded_to_a_pixel_is_the_same_however_small(tmp_path):
    """A patch of 2 px at 1.3 level-0 px is stored as 3 px: 15 % more, and the same patch."""
    path = write_slide(tmp_path / "s.tif", [tissue(60, 60)], mpp=1.0)
    write_coords(tmp_path / "other" / "s.h5", {**WSINFER, "patch_size": 3}, [[1, 1]])
    config = TileConfig(target_mpp=1.3, patch_px=2, coords=tmp_path / "other")
    tile_slide(path, tmp_path / "s.zarr", slide_id="s", config=config)
    assert PatchStore.open(tmp_path / "s.zarr").coords.tolist() == [[1, 1]]


def test_patches_off_the_slide_are_refused(slide, tmp_path):
    with pytest.raises(GridError, match=r"1 of 2 patches lie off the slide of 400 x 300"):
        cut(slide, tmp_path, attributes=CLAM, coords=[[0, 0], [400, 0]])


def test_changed_coordinates_make_a_store_stale_and_a_moved_folder_does_not(slide, tmp_path):
    def fingerprint(folder):
        config = TileConfig(coords=folder)
        return tile_fingerprint(
            slide, slide_id="s", config=config, annotation_path=None, slide_label=None, mpp=None
        )

    write_coords(tmp_path / "a/s.h5", CLAM)
    before = fingerprint(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert fingerprint(tmp_path / "b") == before
    write_coords(tmp_path / "b/s.h5", CLAM, XY[:2])
    assert fingerprint(tmp_path / "b") != before
