"""One patch at exactly the target resolution."""

from pathlib import Path

import numpy as np
import pytest

from tests.helpers import slides
from tiling.contracts import TileConfig, TileGeometry
from tiling.geometry import resolve_geometry
from tiling.patches import read_patch
from tiling.slide import open_slide

PIXELS = slides.noise(640, 512)
LEVELS = [PIXELS, slides.halve(PIXELS), slides.halve(PIXELS, 2)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return slides.write_slide(tmp_path / "a.tif", LEVELS, mpp=0.25)


def geometry_at(target_mpp: float, *, patch_px: int = 32, mpp=(0.25, 0.25)) -> TileGeometry:
    config = TileConfig(target_mpp=target_mpp, patch_px=patch_px)
    return resolve_geometry(config, slide_mpp=mpp)


@pytest.mark.parametrize(("target_mpp", "level"), [(0.25, 0), (0.5, 1), (1.0, 2)])
@pytest.mark.parametrize("at", [(0, 0), (40, 24), (300, 200)], ids=str)
def test_at_a_stored_level_pixels_come_bit_for_bit(path: Path, target_mpp, level, at):
    step = 2**level
    with open_slide(path) as slide:
        patch = read_patch(slide, at, geometry=geometry_at(target_mpp))

    x, y = at[0] // step, at[1] // step
    np.testing.assert_array_equal(patch, LEVELS[level][y : y + 32, x : x + 32])


def test_the_result_is_the_same_whether_or_not_the_level_is_stored(tmp_path: Path, path: Path):
    bare = slides.write_slide(tmp_path / "bare.tif", LEVELS[:1], mpp=0.25)
    with open_slide(path) as stored, open_slide(bare) as computed:
        one = read_patch(stored, (64, 96), geometry=geometry_at(0.5)).astype(int)
        other = read_patch(computed, (64, 96), geometry=geometry_at(0.5))

    assert np.abs(one - other).max() <= 1  # halves round the other way


def test_between_levels_each_pixel_is_the_mean_of_its_area(path: Path):
    with open_slide(path) as slide:
        patch = read_patch(slide, (40, 80), geometry=geometry_at(0.75))  # 3 px, from level 0 or 1

    # Read from level 1: 1.5 of its pixels, and a half, and so on.
    rows, columns = ((np.arange(32 * 30) + 0.5) / 20 for _ in range(2))
    points = LEVELS[1][np.ix_((40 + rows).astype(int), (20 + columns).astype(int))].astype(float)
    means = points.reshape(32, 30, 32, 30, 3).mean(axis=(1, 3))
    assert np.abs(patch - means).max() <= 1


def test_x_and_y_shrink_by_their_own_resolution(tmp_path: Path):
    path = slides.write_slide(tmp_path / "a.tif", [PIXELS], mpp=(0.25, 0.5))
    with open_slide(path) as slide:
        patch = read_patch(slide, (8, 8), geometry=geometry_at(1.0, mpp=(0.25, 0.5)))

    means = PIXELS[8:72, 8:136].reshape(32, 2, 32, 4, 3).mean(axis=(1, 3))
    assert np.abs(patch - means).max() <= 0.51


def test_over_the_edge_is_white(path: Path):
    with open_slide(path) as slide:
        patch = read_patch(slide, (600, 480), geometry=geometry_at(0.75))

    assert (patch[:, 14:] == 255).all()
    assert (patch[11:] == 255).all()
    assert patch[:10, :13].mean() < 160


def test_a_constant_slide_gives_constant_patches_at_any_scale(tmp_path: Path):
    flat = np.full((300, 301, 3), (200, 100, 50), np.uint8)
    path = slides.write_slide(tmp_path / "a.tif", [flat, flat[::2, ::2].copy()], mpp=0.25)
    with open_slide(path) as slide:
        for target_mpp in (0.26, 0.3331, 0.5, 0.77):
            patch = read_patch(slide, (17, 33), geometry=geometry_at(target_mpp))
            # Between whole pixels of level 1 OpenSlide itself rounds a constant down by one.
            assert np.abs(patch.astype(int) - flat[:32, :32]).max() <= (target_mpp >= 0.5)


def test_neighbouring_patches_join_without_a_seam(path: Path):
    geometry = geometry_at(0.375, patch_px=40)  # 1.5: tiles of 60 level-0 px
    double = geometry_at(0.375, patch_px=80)
    with open_slide(path) as slide:
        left = read_patch(slide, (0, 0), geometry=geometry)
        right = read_patch(slide, (60, 0), geometry=geometry)
        whole = read_patch(slide, (0, 0), geometry=double)

    np.testing.assert_array_equal(np.hstack([left, right]), whole[:40])


def test_a_resolution_off_by_less_than_half_a_pixel_is_the_stored_level(path: Path):
    """0.2501 for 0.25 must not blur a patch."""
    with open_slide(path) as slide:
        patch = read_patch(slide, (40, 24), geometry=geometry_at(0.2501))

    np.testing.assert_array_equal(patch, PIXELS[24:56, 40:72])
