"""Masks: which level, which downsample, which values; refused where it would be a guess."""

import numpy as np
import pytest
import tifffile
from PIL import Image

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
    assert "without resolution, its first level taken as level 0" in "".join(found.notes)


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
    mask[:64, :64] = 0
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(mask, photometric="minisblack")
        file.write(mask[:31, :31], subfiletype=1, photometric="minisblack")
    found = read_mask(tmp_path / "a.tif")
    assert found.downsample == 32
    assert found.tumour.shape == (32, 32)
    assert found.size == (1007, 1007)


def test_levels_filled_up_to_whole_tiles_lie_at_powers_of_two(tmp_path):
    """CAMELYON16's do: their sizes alone give 28 and 29.2 instead of 32, or no level at all."""
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


def test_one_level_without_resolution_is_level_0_and_noted(tmp_path, mask):
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
    with pytest.raises(
        EvaluationError, match=r"a\.tif: holds 40 images of 1 x 52 pixels where one"
    ):
        read_mask(tmp_path / "a.tif")


def test_dots_per_inch_of_a_drawing_program_are_ignored(tmp_path, mask):
    tifffile.imwrite(tmp_path / "a.tif", mask, resolution=(72, 72), resolutionunit="INCH")
    assert read_mask(tmp_path / "a.tif").downsample == 1


PER_CM = 1e4 / 0.243  # pixels of a slide of 0.243 µm


def write_pyramid_at(path, mask, *, begins, levels=5, **options):
    """Write a pyramid whose first level lies at a downsample of a slide of 0.243 µm per pixel."""
    copies = [mask[:: 2**n, :: 2**n] for n in range(levels)]
    with tifffile.TiffWriter(path) as file:
        for n, copy in enumerate(copies):
            density = PER_CM / (begins * 2**n)
            options |= {"resolution": (density, density), "resolutionunit": "CENTIMETER"}
            file.write(copy, subfiletype=int(n > 0), tile=(64, 64), metadata=None, **options)
    return copies


@pytest.mark.parametrize("begins", [1, 2, 4, 8])
@pytest.mark.parametrize("mpp", [0.243, None])
def test_a_pyramid_begins_where_its_own_resolution_says(tmp_path, mask, begins, mpp):
    """One that begins at the slide's level 1 was placed at level 0."""
    copies = write_pyramid_at(tmp_path / "a.tif", mask, begins=begins, levels=6)
    found = read_mask(tmp_path / "a.tif", mpp=mpp)
    level = 5 - round(np.log2(begins))
    assert found.downsample == 32
    assert found.size == (1650 * begins, 1270 * begins)
    assert np.array_equal(found.tumour, copies[level] != 0)
    assert bool(found.notes) == (begins > 1)


def test_the_downsample_of_such_a_pyramid_may_be_stated(tmp_path, mask):
    copies = write_pyramid_at(tmp_path / "a.tif", mask, begins=2)
    found = read_mask(tmp_path / "a.tif", mpp=0.243, downsample=32)
    assert (found.downsample, found.size) == (32, (3300, 2540))
    assert np.array_equal(found.tumour, copies[4] != 0)
    stated = read_mask(tmp_path / "a.tif", mpp=0.243, downsample=1)
    assert (stated.downsample, stated.size) == (1, (1650, 1270))
    assert "which differs from its own resolution" in stated.notes[0]


@pytest.mark.parametrize("mpp", [0.3, 0.4, None])
def test_a_pyramid_that_lies_at_no_level_of_the_slide_is_refused(tmp_path, mask, mpp):
    write_pyramid_at(tmp_path / "a.tif", mask, begins=3.1)
    with pytest.raises(EvaluationError, match=r"its pixels are 0\.7533 µm.*--mask-downsample"):
        read_mask(tmp_path / "a.tif", mpp=mpp)


def test_a_slide_whose_resolution_differs_a_little_is_at_level_0(tmp_path, mask):
    """CAMELYON16's slides have 0.226 to 0.243 µm per pixel."""
    write_pyramid_at(tmp_path / "a.tif", mask, begins=0.226 / 0.243)
    found = read_mask(tmp_path / "a.tif")
    assert (found.size, found.notes) == ((1650, 1270), ())


def test_the_resolution_of_an_ome_mask_counts(tmp_path, mask):
    metadata = {"axes": "YX", "PhysicalSizeX": 0.5 * 32, "PhysicalSizeY": 0.5 * 32}
    tifffile.imwrite(tmp_path / "a.ome.tif", mask, ome=True, metadata=metadata)
    assert read_mask(tmp_path / "a.ome.tif", mpp=0.5).downsample == 32


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
    """Masks of tissue 1 and tumour 2: a slide listed as normal has only tissue."""
    tifffile.imwrite(tmp_path / "a.tif", mask)
    assert not read_mask(tmp_path / "a.tif", downsample=32, tumour_value=2, label=0).tumour.any()
    tifffile.imwrite(tmp_path / "b.tif", mask * 0)
    assert not read_mask(tmp_path / "b.tif", downsample=32, tumour_value=2).tumour.any()


@pytest.mark.parametrize("dtype", [bool, np.uint16, np.int8, np.int32])
def test_masks_of_other_whole_numbers_are_read(tmp_path, mask, dtype):
    tifffile.imwrite(tmp_path / "a.tif", mask.astype(dtype), photometric="minisblack")
    found = read_mask(tmp_path / "a.tif", downsample=32, tumour_value=1)
    assert np.array_equal(found.tumour, mask == 1)


def test_what_is_no_mask_is_refused(tmp_path, mask):
    tifffile.imwrite(tmp_path / "a.tif", mask.astype(np.float32))
    with pytest.raises(EvaluationError, match=r"a\.tif: a mask has one channel of whole numbers"):
        read_mask(tmp_path / "a.tif", downsample=32)


def test_a_mask_that_was_compressed_with_loss_is_refused(tmp_path, mask):
    """Zeros come back as ones and twos around every lesion."""
    tifffile.imwrite(tmp_path / "a.tif", mask * 255, compression="jpeg", tile=(64, 64))
    with pytest.raises(EvaluationError, match=r"a\.tif: is compressed with JPEG"):
        read_mask(tmp_path / "a.tif", downsample=32)


# ------------------------------------------------------------ what is shown


def write_shown(path, mask, kind):
    """Write a mask that any viewer shows as bright tumour on black, or on nothing."""
    tumour = mask != 0
    value = np.uint8(200) * tumour
    rgba = np.dstack([np.full((*mask.shape, 3), 9, np.uint8), np.uint8(255) * tumour])
    tables = {"palette": [0, 9], "palette, white first": [9, 0]}
    if kind in tables:
        colours = np.zeros((3, 256), np.uint16)
        colours[:, 0], colours[:, 1] = tables[kind]
        indices = (tumour if kind == "palette" else ~tumour).astype(np.uint8)
        if path.suffix == ".png":
            picture = Image.fromarray(indices).convert("P")
            picture.putpalette((colours.T.astype(np.uint8)).tobytes())
            picture.save(path)
        else:
            shown = {"photometric": "palette", "colormap": colours * 257}
            tifffile.imwrite(path, indices, **shown)
        return
    if path.suffix == ".png":
        pictures = {
            "grey": value, "1-bit": tumour, "16-bit": tumour.astype(np.uint16), "rgba": rgba,
            "grey and alpha": rgba[..., 2:], "rgb": np.dstack([value] * 3),
        }  # fmt: skip
        Image.fromarray(pictures[kind]).save(path)
        return
    stored = {
        "grey": (value, "minisblack"),
        "1-bit": (tumour, "minisblack"),
        "16-bit": (tumour.astype(np.uint16), "minisblack"),
        "white is zero": (255 - value, "miniswhite"),
        "white is zero, 1-bit": (~tumour, "miniswhite"),
        "white is zero, 16-bit": (65535 - tumour.astype(np.uint16), "miniswhite"),
        "rgba": (rgba, "rgb"),
        "grey and alpha": (rgba[..., 2:], "minisblack"),
        "rgb": (np.dstack([value] * 3), "rgb"),
    }
    pixels, photometric = stored[kind]
    options = {"extrasamples": ["unassalpha"]} if pixels.shape[-1] in (2, 4) else {}
    tifffile.imwrite(path, pixels, photometric=photometric, **options)


COMMON = (
    "grey", "1-bit", "16-bit", "palette", "palette, white first", "rgb", "rgba", "grey and alpha",
)  # fmt: skip
TURNED = ("white is zero", "white is zero, 1-bit", "white is zero, 16-bit")


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [*((".png", kind) for kind in COMMON), *((".tif", kind) for kind in (*COMMON, *TURNED))],
)
@pytest.mark.parametrize("max_pixels", [10**6, 10**3], ids=["whole", "sampled"])
def test_what_a_viewer_shows_bright_is_tumour(tmp_path, mask, suffix, kind, max_pixels):
    """Masks with white as zero were read inverted."""
    small = np.ascontiguousarray(mask[::8, ::8])
    path = tmp_path / f"a{suffix}"
    write_shown(path, small, kind)
    found = read_mask(path, downsample=32 if max_pixels == 10**6 else 8, max_pixels=max_pixels)
    step = round(found.downsample / (32 if max_pixels == 10**6 else 8))
    expected = small[step // 2 :: step, step // 2 :: step] != 0
    assert np.array_equal(found.tumour[: expected.shape[0], : expected.shape[1]], expected)


def test_the_tumour_value_is_the_one_that_is_shown(tmp_path, mask):
    shown = mask.copy()
    shown[:64] = 2
    tifffile.imwrite(tmp_path / "a.tif", 255 - shown, photometric="miniswhite")
    found = read_mask(tmp_path / "a.tif", downsample=32, tumour_value=2)
    assert np.array_equal(found.tumour, shown == 2)
    assert found.values == (1, 2)


def test_the_values_of_a_palette_are_its_indices(tmp_path, mask):
    classes = mask.copy()
    classes[:64] = 2
    colours = np.zeros((3, 256), np.uint16)
    colours[:, 0] = 65535  # QuPath's labelled images have a white background
    colours[0, 1:3] = 30000
    tifffile.imwrite(tmp_path / "a.tif", classes, photometric="palette", colormap=colours)
    found = read_mask(tmp_path / "a.tif", downsample=32, tumour_value=2)
    assert np.array_equal(found.tumour, classes == 2)
    assert any("its index 0, though it is not black" in note for note in found.notes)


def test_a_colour_picture_is_tumour_where_it_is_not_black_and_has_no_values(tmp_path, mask):
    Image.fromarray(np.dstack([mask * 255, mask * 0, mask * 0])).save(tmp_path / "a.png")
    found = read_mask(tmp_path / "a.png", downsample=32)
    assert np.array_equal(found.tumour, mask == 1)
    assert any("a colour picture" in note for note in found.notes)
    with pytest.raises(EvaluationError, match="a colour picture has no value 255"):
        read_mask(tmp_path / "a.png", downsample=32, tumour_value=255)


def test_black_on_nothing_is_refused(tmp_path, mask):
    """It would be no tumour at all."""
    pixels = np.dstack([mask * 0, mask * 255])
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", pixels, extrasamples=["unassalpha"])
    for name in ("a.png", "a.tif"):
        with pytest.raises(EvaluationError, match="drawn with transparency alone"):
            read_mask(tmp_path / name, downsample=32)


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_a_mask_without_background_is_refused(tmp_path, mask, name):
    """The whole slide was one lesion, and FROC 1.0."""

    def write(values):
        if name == "a.png":
            Image.fromarray(values).save(tmp_path / name)
        else:
            tifffile.imwrite(tmp_path / name, values)

    write(mask + np.uint8(1))
    with pytest.raises(EvaluationError, match=r"no pixel is background.*1, 2.*--tumour-value"):
        read_mask(tmp_path / name, downsample=32)
    found = read_mask(tmp_path / name, downsample=32, tumour_value=2)
    assert np.array_equal(found.tumour, mask == 1)
    write(np.full_like(mask, 7))
    with pytest.raises(EvaluationError, match="no pixel is background"):
        read_mask(tmp_path / name, downsample=32, tumour_value=7)


@pytest.mark.parametrize("damage", ["garbage", "cut", "cut pixels"])
def test_a_damaged_file_is_named(tmp_path, mask, damage):
    path = tmp_path / "a.tif"
    write_pyramid(path, mask, levels=1)
    data = path.read_bytes()
    cut = {"garbage": b"GIF89a" + data, "cut": data[:20], "cut pixels": data[: len(data) // 2]}
    path.write_bytes(cut[damage])
    with pytest.raises(EvaluationError, match=r"a\.tif: (cannot be read|is neither a TIFF nor)"):
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
