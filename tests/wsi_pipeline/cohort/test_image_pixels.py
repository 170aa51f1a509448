"""Image files of many kinds to one kind of array."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsi_pipeline.cohort.image_pixels import fit_image, read_image
from wsi_pipeline.config.settings import ImagesConfig
from wsi_pipeline.errors import ManifestError

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (5, 7, 3), np.uint8)
GREY = RGB[..., 0]


@pytest.mark.parametrize("ending", [".png", ".tif", ".bmp"])
def test_colours_come_out_as_they_went_in(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    Image.fromarray(RGB).save(path)
    assert np.array_equal(read_image(path, channels=3), RGB)


def test_jpeg_comes_out_nearly_so(tmp_path):
    smooth = np.tile(np.arange(0, 240, 10, dtype=np.uint8)[:, None, None], (1, 24, 3))
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    assert abs(read_image(tmp_path / "a.jpg", channels=3).astype(int) - smooth).max() < 8


def test_grey_as_colour_and_colour_as_grey(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "g.png")
    assert np.array_equal(read_image(tmp_path / "g.png", channels=1)[..., 0], GREY)
    assert np.array_equal(read_image(tmp_path / "g.png", channels=3)[..., 2], GREY)
    Image.fromarray(RGB).save(tmp_path / "c.png")
    luma = RGB @ np.array([0.299, 0.587, 0.114])
    assert abs(read_image(tmp_path / "c.png", channels=1)[..., 0] - luma).max() <= 1


def test_a_palette_is_looked_up(tmp_path):
    image = Image.fromarray(GREY).convert("P")
    image.putpalette([v for i in range(256) for v in (i, 0, 255 - i)])
    image.save(tmp_path / "p.png")
    found = read_image(tmp_path / "p.png", channels=3)
    assert np.array_equal(found[..., 2], 255 - found[..., 0])


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_transparent_pixels_are_white(tmp_path, ending):
    rgba = np.dstack([RGB, np.where(np.arange(7) < 3, 0, 255) * np.ones((5, 1))]).astype(np.uint8)
    Image.fromarray(rgba).save(tmp_path / f"a{ending}")
    found = read_image(tmp_path / f"a{ending}", channels=3)
    assert (found[:, :3] == 255).all()
    assert np.array_equal(found[:, 3:], RGB[:, 3:])


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_deep_values_are_stretched_over_the_image(tmp_path, dtype):
    deep = (np.linspace(100, 4000, 35).reshape(5, 7)).astype(dtype)
    tifffile.imwrite(tmp_path / "d.tif", deep)
    found = read_image(tmp_path / "d.tif", channels=1)[..., 0]
    expected = np.round((deep - deep.min()) / (deep.max() - deep.min()) * 255)
    assert abs(found - expected).max() <= 1
    if dtype is np.uint16:
        Image.fromarray(deep).save(tmp_path / "d.png")
        assert np.array_equal(read_image(tmp_path / "d.png", channels=1)[..., 0], found)


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(ManifestError, match=r"bad\.png: cannot be decoded"):
        read_image(tmp_path / "bad.png", channels=3)
    tifffile.imwrite(tmp_path / "nan.tif", np.full((3, 3), np.nan, np.float32))
    with pytest.raises(ManifestError, match="no numbers"):
        read_image(tmp_path / "nan.tif", channels=1)
    tifffile.imwrite(
        tmp_path / "stack.tif", np.zeros((4, 5, 6), np.uint8), photometric="minisblack"
    )
    with pytest.raises(ManifestError, match="holds 4 images of 6 x 5 pixels where one is needed"):
        read_image(tmp_path / "stack.tif", channels=1)


def test_padding_is_zeros_around_the_centre():
    found = fit_image(RGB, ImagesConfig(size=(8, 12), fit="pad"), "a")
    assert np.array_equal(found[1:6, 2:9], RGB)
    assert found.sum() == RGB.sum()
    with pytest.raises(ManifestError, match="7 x 5 px cannot be padded to 6 x 8 px"):
        fit_image(RGB, ImagesConfig(size=(8, 6), fit="pad"), "a")


def test_cropping_is_of_the_centre():
    found = fit_image(RGB, ImagesConfig(size=(3, 4), fit="crop"), "a")
    assert np.array_equal(found, RGB[1:4, 1:5])
    with pytest.raises(ManifestError, match="cannot be cropped"):
        fit_image(RGB, ImagesConfig(size=(6, 4), fit="crop"), "a")


@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_keeps_a_constant_and_the_channels(channels):
    flat = np.full((128, 170, channels), 77, np.uint8)
    found = fit_image(flat, ImagesConfig(size=(32, 50)), "a")
    assert found.shape == (32, 50, channels)
    assert (found == 77).all()


def test_samples_that_lie_apart_are_put_together(tmp_path):
    apart = np.ascontiguousarray(np.moveaxis(RGB, -1, 0))
    tifffile.imwrite(tmp_path / "a.tif", apart, photometric="rgb", planarconfig="separate")
    assert np.array_equal(read_image(tmp_path / "a.tif", channels=3), RGB)


def test_several_pictures_in_a_file_are_not_one(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([GREY] * 3), photometric="minisblack")
    with pytest.raises(ManifestError, match="holds 3 images"):
        read_image(tmp_path / "a.tif", channels=1)


@pytest.mark.parametrize("axes", ["ZYXS", "TYXS"])
def test_stacks_and_series_are_refused(tmp_path, axes):
    """The middle plane of a slide is a slide; which plane of an image is meant is not known."""
    tifffile.imwrite(
        tmp_path / "a.tif", np.stack([RGB] * 3), ome=True, metadata={"axes": axes},
        photometric="rgb",
    )  # fmt: skip
    with pytest.raises(ManifestError, match=r"focal planes|time series"):
        read_image(tmp_path / "a.tif", channels=3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_three_grey_planes_are_red_green_and_blue(tmp_path, dtype):
    """The first was read as a grey image."""
    planes = np.ascontiguousarray(np.moveaxis(RGB, -1, 0)).astype(dtype)
    tifffile.imwrite(
        tmp_path / "a.tif", planes, ome=True, metadata={"axes": "CYX"}, photometric="minisblack"
    )
    found = read_image(tmp_path / "a.tif", channels=3)
    if dtype is np.uint8:
        assert np.array_equal(found, RGB)
    assert found.shape == RGB.shape


def test_of_several_images_the_largest_is_read(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(RGB[:2, :2], photometric="rgb", metadata=None)
        tif.write(RGB, photometric="rgb", metadata=None)
    assert np.array_equal(read_image(tmp_path / "a.tif", channels=3), RGB)


def test_no_folder_is_shown_for_a_broken_file(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    with pytest.raises(ManifestError) as given:
        read_image(tmp_path / "bad.png", channels=1)
    assert str(tmp_path) not in str(given.value)


def as_pillow(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    ("mode", "compression"),
    [("CMYK", None), ("CMYK", "jpeg"), ("P", None), ("P", "tiff_lzw"), ("YCbCr", None),
     ("RGB", "jpeg"), ("L", None), ("1", None)],
)  # fmt: skip
def test_a_tiff_has_the_colours_that_pillow_reads(tmp_path, mode, compression):
    smooth = np.zeros((32, 48, 3), np.uint8)
    smooth[:16], smooth[16:] = (220, 120, 180), (90, 40, 130)
    image = Image.fromarray(smooth)
    image = image.quantize(8) if mode == "P" else image.convert(mode)
    image.save(tmp_path / "a.tif", compression=compression)
    found = read_image(tmp_path / "a.tif", channels=3).astype(int)
    assert abs(found - as_pillow(tmp_path / "a.tif")).max() <= (2 if compression == "jpeg" else 0)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_tiff_whose_zero_is_white_is_not_taken_as_a_negative(tmp_path, bits):
    dtype = np.uint16 if bits == 16 else np.uint8
    values = np.array([[0, 2**bits - 1]] * 8, dtype)
    for kind, expected in (("miniswhite", [255, 0]), ("minisblack", [0, 255])):
        path = tmp_path / f"{kind}.tif"
        tifffile.imwrite(path, values, photometric=kind, bitspersample=bits)
        assert read_image(path, channels=1)[0, :, 0].tolist() == expected
        if bits < 16:  # of which Pillow keeps all bits
            assert as_pillow(path)[0, :, 0].tolist() == expected


def test_a_palette_has_the_upper_bits_of_its_colours(tmp_path):
    table = RANDOM.integers(0, 2**16, (3, 256)).astype(np.uint16)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GREY, photometric="palette", colormap=table)
    found = read_image(path, channels=3)
    assert np.array_equal(np.moveaxis(found, -1, 0), (table >> 8)[:, GREY])
    assert np.array_equal(found, as_pillow(path))


@pytest.mark.parametrize(
    ("extra", "pixel"),
    [
        ("unspecified", [200, 100, 0]),
        ("unassalpha", [228, 178, 128]),
        ("assocalpha", [255, 228, 128]),
    ],
)
def test_a_fourth_sample_is_transparency_where_the_tiff_says_so(tmp_path, extra, pixel):
    values = np.full((4, 4, 4), (200, 100, 0, 127), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=[extra])
    found = read_image(tmp_path / "a.tif", channels=3)[0, 0].astype(int)
    assert abs(found - pixel).max() <= 1


@pytest.mark.parametrize(
    ("shape", "dtype", "kind", "message"),
    [((4, 4, 3), np.uint8, "cielab", "CIELAB"),
     ((4, 4, 4), np.uint16, "separated", "CMYK of uint16"),
     ((4, 4, 4), np.uint16, "rgb", "transparency is of uint16"),
     ((4, 4, 3), np.uint8, "minisblack", "3 samples of the TIFF photometric MINISBLACK")],
)  # fmt: skip
def test_colours_that_are_not_read_are_refused_with_the_remedy(
    tmp_path, shape, dtype, kind, message
):
    extra = {"rgb": ["unassalpha"], "minisblack": ["unspecified"] * 2}.get(kind)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, np.ones(shape, dtype), photometric=kind, planarconfig="contig", extrasamples=extra
    )
    with pytest.raises(ManifestError, match=rf"a\.tif: .*{message}.*; save it "):
        read_image(path, channels=3)
