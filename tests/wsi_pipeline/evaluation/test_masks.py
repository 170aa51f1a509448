"""Masks: which level, which downsample, which values; refused where it would be a guess."""

import numpy as np
import pytest
import tifffile

from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.masks import read_mask


def write_pyramid(path, mask, *, levels, subifds=False, tile=(64, 64), **options):
    """Write a mask and its smaller copies, every second pixel each."""
    copies = [mask[:: 2**n, :: 2**n] for n in range(levels)]
    with tifffile.TiffWriter(path) as file:
        options = {"tile": tile, "photometric": "minisblack", "compression": "zlib"} | options
        file.write(copies[0], subifds=levels - 1 if subifds else 0, **options)
        for copy in copies[1:]:
            file.write(copy, subfiletype=1, **options)
    return copies


@pytest.fixture
def mask():
    random = np.random.default_rng(0)
    return np.kron(random.random((20, 26)) < 0.3, np.ones((64, 64))).astype(np.uint8)[:1270, :1650]


@pytest.mark.parametrize("subifds", [True, False], ids=["subifds", "pages"])
def test_a_pyramid_is_read_at_the_level_of_downsample_32(tmp_path, mask, subifds):
    copies = write_pyramid(tmp_path / "a.tif", mask, levels=7, subifds=subifds)
    found = read_mask(tmp_path / "a.tif")
    assert found.downsample == 32
    assert found.size == (1650, 1270)
    assert np.array_equal(found.tumour, copies[5] != 0)
    assert found.notes == ()


def test_a_shallow_pyramid_is_read_at_its_last_level_with_its_own_downsample(tmp_path, mask):
    copies = write_pyramid(tmp_path / "a.tif", mask, levels=4)
    found = read_mask(tmp_path / "a.tif")
    assert found.downsample == 8
    assert np.array_equal(found.tumour, copies[3] != 0)


def test_the_level_that_is_asked_for_is_read(tmp_path, mask):
    copies = write_pyramid(tmp_path / "a.tif", mask, levels=6)
    found = read_mask(tmp_path / "a.tif", downsample=16)
    assert found.downsample == 16
    assert np.array_equal(found.tumour, copies[4] != 0)


def test_a_level_that_is_not_there_is_refused(tmp_path, mask):
    write_pyramid(tmp_path / "a.tif", mask, levels=3)
    with pytest.raises(EvaluationError, match=r"no level at downsample 32; this pyramid has 1, 2"):
        read_mask(tmp_path / "a.tif", downsample=32)


def test_a_level_rounded_down_is_extended_to_the_slides_last_pixel(tmp_path):
    """1007 = 31 * 32 + 15: the last 15 pixels have no place on a level of 31 columns."""
    mask = np.ones((1007, 1007), np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(mask, photometric="minisblack")
        file.write(mask[:31, :31], subfiletype=1, photometric="minisblack")
    found = read_mask(tmp_path / "a.tif")
    assert found.downsample == 32
    assert found.tumour.shape == (32, 32)
    assert found.size == (1007, 1007)


def test_levels_filled_up_to_whole_tiles_lie_at_powers_of_two(tmp_path):
    """CAMELYON16's do: their sizes alone say 28 and 29.2 where 32 is meant, or no level at all."""
    mask = np.zeros((1792, 1680), np.uint8)
    mask[900:1400, 800:1500] = 1
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for n in range(6):
            copy = mask[:: 2**n, :: 2**n]
            full = [(0, -size % 16) for size in copy.shape]
            file.write(np.pad(copy, full) if n else copy, tile=(16, 16), subfiletype=int(n > 0))
    found = read_mask(tmp_path / "a.tif")
    assert (found.downsample, found.size) == (32, (1680, 1792))
    assert np.array_equal(found.tumour, mask[::32, ::32] != 0)
    assert read_mask(tmp_path / "a.tif", downsample=16).downsample == 16


def test_a_thumbnail_of_another_shape_is_no_level(tmp_path, mask):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(mask, photometric="minisblack")
        file.write(mask[:40, :200], photometric="minisblack")
    assert read_mask(tmp_path / "a.tif", downsample=32).size == (1650 * 32, 1270 * 32)


def test_one_level_lies_at_the_downsample_that_is_given(tmp_path, mask):
    tifffile.imwrite(tmp_path / "a.tif", mask)
    found = read_mask(tmp_path / "a.tif", downsample=32)
    assert found.downsample == 32
    assert found.size == (1650 * 32, 1270 * 32)


def test_one_level_without_resolution_is_level_0_and_it_is_said(tmp_path, mask):
    tifffile.imwrite(tmp_path / "a.tif", mask)
    found = read_mask(tmp_path / "a.tif")
    assert found.downsample == 1
    assert "taken as level 0" in found.notes[0]


@pytest.mark.parametrize(
    ("mask_mpp", "mpp", "downsample"),
    [(0.243 * 32, None, 32), (0.25 * 32, 0.25, 32), (0.243, None, 1), (5.0, 0.5, 10)],
)
def test_one_level_with_resolution_says_its_downsample(tmp_path, mask, mask_mpp, mpp, downsample):
    per_cm = 1e4 / mask_mpp
    tifffile.imwrite(
        tmp_path / "a.tif", mask, resolution=(per_cm, per_cm), resolutionunit="CENTIMETER"
    )
    assert read_mask(tmp_path / "a.tif", mpp=mpp).downsample == downsample


def test_a_resolution_that_fits_no_camelyon16_level_is_refused(tmp_path, mask):
    per_cm = 1e4 / 6.0
    tifffile.imwrite(
        tmp_path / "a.tif", mask, resolution=(per_cm, per_cm), resolutionunit="CENTIMETER"
    )
    with pytest.raises(EvaluationError, match=r"--mask-downsample.*--mpp"):
        read_mask(tmp_path / "a.tif")


def test_a_downsample_that_is_no_power_of_two_is_taken_as_it_is(tmp_path, mask):
    """31.1 was taken as 31: 300 px off at the far end of a slide."""
    options = {"resolution": (1e4 / 7.776, 1e4 / 7.776), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a.tif", mask[::32, ::32], **options)
    assert read_mask(tmp_path / "a.tif", mpp=0.25).downsample == pytest.approx(31.104)


def test_a_stack_of_images_is_refused(tmp_path, mask):
    """So an array of (rows, columns, 1) may be written, an image for each row: one was read."""
    tifffile.imwrite(tmp_path / "a.tif", mask[::32, ::32, None], photometric=1, metadata=None)
    with pytest.raises(EvaluationError, match=r"a\.tif: holds 40 images of 1 x 52 pixels where a"):
        read_mask(tmp_path / "a.tif")


def test_dots_per_inch_of_a_drawing_program_say_nothing(tmp_path, mask):
    tifffile.imwrite(tmp_path / "a.tif", mask, resolution=(72, 72), resolutionunit="INCH")
    assert read_mask(tmp_path / "a.tif").downsample == 1


# ------------------------------------------------------------ values


@pytest.mark.parametrize("value", [1, 255])
def test_masks_of_0_1_and_0_255_are_the_same(tmp_path, mask, value):
    tifffile.imwrite(tmp_path / "a.tif", mask * np.uint8(value))
    for asked in (None, value):
        found = read_mask(tmp_path / "a.tif", downsample=32, tumour_value=asked)
        assert np.array_equal(found.tumour, mask == 1)
        assert found.values == (value,)


@pytest.mark.parametrize(("value", "asked"), [(1, 255), (255, 1)])
def test_a_tumour_value_that_is_not_there_is_refused(tmp_path, mask, value, asked):
    tifffile.imwrite(tmp_path / "a.tif", mask * np.uint8(value))
    with pytest.raises(EvaluationError, match=rf"a\.tif.*value {asked}; its values are 0 and"):
        read_mask(tmp_path / "a.tif", downsample=32, tumour_value=asked)


def test_one_of_several_values_may_be_tumour(tmp_path, mask):
    mask[:64] = 2
    tifffile.imwrite(tmp_path / "a.tif", mask)
    found = read_mask(tmp_path / "a.tif", downsample=32, tumour_value=2)
    assert np.array_equal(found.tumour, mask == 2)
    both = read_mask(tmp_path / "a.tif", downsample=32)
    assert np.array_equal(both.tumour, mask > 0)
    assert "values 1, 2 taken as tumour" in both.notes[0]


def test_a_normal_slide_needs_no_tumour_value(tmp_path, mask):
    """Masks of tissue 1 and tumour 2: a slide told normal has only tissue."""
    tifffile.imwrite(tmp_path / "a.tif", mask)
    assert not read_mask(tmp_path / "a.tif", downsample=32, tumour_value=2, label=0).tumour.any()
    tifffile.imwrite(tmp_path / "b.tif", mask * 0)
    assert not read_mask(tmp_path / "b.tif", downsample=32, tumour_value=2).tumour.any()


@pytest.mark.parametrize("dtype", [bool, np.uint16, np.int8, np.int32])
def test_masks_of_other_whole_numbers_are_read(tmp_path, mask, dtype):
    tifffile.imwrite(tmp_path / "a.tif", mask.astype(dtype))
    found = read_mask(tmp_path / "a.tif", downsample=32, tumour_value=1)
    assert np.array_equal(found.tumour, mask == 1)


@pytest.mark.parametrize("kind", ["colour", "float"])
def test_what_is_no_mask_is_refused(tmp_path, mask, kind):
    if kind == "colour":
        tifffile.imwrite(tmp_path / "a.tif", np.stack([mask] * 3, axis=-1), photometric="rgb")
    else:
        tifffile.imwrite(tmp_path / "a.tif", mask.astype(np.float32))
    with pytest.raises(EvaluationError, match=r"a\.tif: a mask has one channel of whole numbers"):
        read_mask(tmp_path / "a.tif", downsample=32)


@pytest.mark.parametrize("damage", ["garbage", "cut", "cut pixels"])
def test_a_damaged_file_is_named(tmp_path, mask, damage):
    path = tmp_path / "a.tif"
    write_pyramid(path, mask, levels=1)
    data = path.read_bytes()
    cut = {"garbage": b"GIF89a" + data, "cut": data[:20], "cut pixels": data[: len(data) // 2]}
    path.write_bytes(cut[damage])
    with pytest.raises(EvaluationError, match=r"a\.tif: cannot be read"):
        read_mask(path, downsample=32)


# ------------------------------------------------------------ large levels


@pytest.mark.parametrize("tile", [(64, 64), (128, 64), None], ids=["tiles", "oblong", "strips"])
def test_a_level_too_large_is_sampled_towards_32(tmp_path, tile):
    mask = (np.random.default_rng(0).random((1270, 1650)) < 0.5).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", mask, tile=tile, compression="zlib")
    found = read_mask(tmp_path / "a.tif", max_pixels=1000)
    assert found.downsample == 32
    assert found.size == (1650, 1270)
    centres = np.zeros((40, 52), bool)
    sampled = mask[16::32, 16::32] == 1
    centres[: sampled.shape[0], : sampled.shape[1]] = sampled
    assert np.array_equal(found.tumour, centres)
    assert any("every 32th pixel" in note for note in found.notes)


def test_a_sparse_tile_is_no_tumour(tmp_path):
    """Tiles without bytes, as writers leave them where a mask is empty."""
    path = tmp_path / "a.tif"
    mask = np.zeros((256, 256), np.uint8)
    mask[:64, :64] = 1
    tiles = (
        mask[r : r + 64, c : c + 64].copy() if r == c == 0 else None
        for r in range(0, 256, 64)
        for c in range(0, 256, 64)
    )
    tifffile.imwrite(path, tiles, shape=(256, 256), dtype=np.uint8, tile=(64, 64))
    for max_pixels in (1000, 10**6):
        assert read_mask(path, downsample=16, max_pixels=max_pixels).tumour.sum() in (16 * 64, 4096)
