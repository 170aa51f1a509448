"""Which image, plane, colours and resolution of a TIFF are read."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.helpers import slides
from tiling.errors import SeveralImagesError, SlideError, UnsupportedSlideError
from tiling.readers.tiff_ome import parse_ome
from tiling.slide import note_slide, open_slide

SLIDE = slides.noise(640, 512)
PLANES = np.ascontiguousarray(SLIDE.transpose(2, 0, 1))
MACRO = slides.noise(200, 100, seed=1)
SCENE = slides.noise(256, 192, seed=2)
TILED = {"tile": (64, 64), "compression": "deflate"}
STRIPS = {"rowsperstrip": 64}
NO_COLOURS = "three grey planes without colours are taken for red, green and blue"


def about(mpp: float, axes: str = "YXS", **more) -> dict:
    sizes = {f"PhysicalSize{axis}": mpp for axis in "XY"}
    return {"axes": axes, **sizes, **{f"{key}Unit": "µm" for key in sizes}, **more}


def write_ome(path: Path, *images: tuple[np.ndarray, dict], **options) -> Path:
    with tifffile.TiffWriter(path, ome=True) as tif:
        for pixels, metadata in images:
            kind = "rgb" if metadata["axes"].endswith("S") or pixels.ndim < 3 else "minisblack"
            tif.write(pixels, metadata=metadata, photometric=kind, **(options or TILED))
    return path


def read(path: Path):
    """Pixels of level 0, resolution, sizes of the levels, and notes."""
    with open_slide(path) as slide:
        pixels = slide.read_region((0, 0), 0, slide.size)
        return pixels, slide.mpp, slide.level_sizes, note_slide(slide)


def refusal(path: Path, kind: type[SlideError] = SeveralImagesError) -> str:
    with pytest.raises(kind) as caught:
        open_slide(path)
    assert str(caught.value).startswith(f"{path.name}: ")
    assert "copy" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------ OME-TIFF of several images


@pytest.mark.parametrize("layout", [TILED, STRIPS], ids=["tiles", "strips"])
@pytest.mark.parametrize(
    ("first", "name", "its_mpp", "left_out"),
    [
        (MACRO, "macro", 16, ()),
        (MACRO, "Image:0", 16, ()),
        (MACRO, "label image", 16, ()),
        (
            SCENE,
            "scene 1",
            0.25,
            (
                "the largest image of the file, 640 x 512 px, is read; left out: "
                "scene 1 256 x 192 px",
            ),
        ),
    ],
)
def test_an_image_before_the_slide_gives_it_no_resolution(
    tmp_path, layout, first, name, its_mpp, left_out
):
    """The slide was read, at the macro's 16 µm per pixel."""
    images = (first, about(its_mpp, Name=name)), (SLIDE, about(0.5))
    pixels, mpp, sizes, notes = read(write_ome(tmp_path / "a.ome.tif", *images, **layout))
    np.testing.assert_array_equal(pixels, SLIDE)
    assert (mpp, sizes, notes) == ((0.5, 0.5), ((640, 512),), left_out)


def test_a_label_larger_than_the_slide_is_not_taken_for_it(tmp_path):
    path = write_ome(
        tmp_path / "a.ome.tif", (SLIDE, about(16, Name="Label image")), (SCENE, about(0.25))
    )
    pixels, mpp, _, _ = read(path)
    np.testing.assert_array_equal(pixels, SCENE)
    assert mpp == (0.25, 0.25)


def test_the_pyramid_is_that_of_the_image_chosen(tmp_path):
    path = tmp_path / "a.ome.tif"
    half, quarter = slides.noise(320, 256, seed=3), slides.noise(160, 128, seed=4)
    with tifffile.TiffWriter(path, ome=True) as tif:
        tif.write(MACRO, metadata=about(16), subifds=1, photometric="rgb", **TILED)
        tif.write(MACRO[::2, ::2], subfiletype=1, photometric="rgb", **TILED)
        tif.write(SLIDE, metadata=about(0.5), subifds=2, photometric="rgb", **TILED)
        for level in (half, quarter):
            tif.write(level, subfiletype=1, photometric="rgb", **TILED)
    with open_slide(path) as slide:
        assert slide.level_sizes == ((640, 512), (320, 256), (160, 128))
        np.testing.assert_array_equal(slide.read_region((0, 0), 1, (320, 256)), half)
        np.testing.assert_array_equal(slide.read_region((0, 0), 2, (160, 128)), quarter)


def test_levels_stored_as_images_of_their_own_are_levels(tmp_path):
    """As older Bio-Formats wrote pyramids: the same area in µm, half the pixels."""
    half = slides.halve(SLIDE)
    path = write_ome(tmp_path / "a.ome.tif", (SLIDE, about(0.5)), (half, about(1.0)))
    _, _, sizes, notes = read(path)
    assert sizes == ((640, 512), (320, 256))
    assert notes == ()


def test_a_scene_of_half_the_side_at_the_same_resolution_is_no_level(tmp_path):
    path = write_ome(
        tmp_path / "a.ome.tif", (SLIDE, about(0.5)), (slides.noise(320, 256, seed=5), about(0.5))
    )
    _, _, sizes, notes = read(path)
    assert sizes == ((640, 512),)
    assert "left out" in notes[0]


def test_one_file_of_several_is_refused_where_its_pixels_lie_in_another(tmp_path):
    path = write_ome(tmp_path / "a.ome.tif", (SLIDE, about(0.5)))
    with tifffile.TiffFile(path) as tif:
        xml = tif.ome_metadata
    start, end = xml.index("<TiffData"), xml.index("</Pixels>")
    elsewhere = '<TiffData IFD="0"><UUID FileName="b.ome.tif">urn:uuid:1</UUID></TiffData>'
    text = xml[:start] + elsewhere + xml[end:]
    tifffile.imwrite(
        path, SLIDE, description=text.encode(), metadata=None, photometric="rgb", **TILED
    )
    assert "in several files" in refusal(path)


def test_a_description_left_over_from_another_file_is_not_believed(tmp_path):
    """Converters keep it: the XML is of 640 x 512 px at 0.5 µm, the page is another."""
    with tifffile.TiffFile(write_ome(tmp_path / "a.ome.tif", (SLIDE, about(0.5)))) as tif:
        xml = tif.ome_metadata
    path = slides.write_slide(tmp_path / "b.tif", [SCENE], mpp=2.0, description=xml.encode())
    pixels, mpp, _, _ = read(path)
    np.testing.assert_array_equal(pixels, SCENE)
    assert mpp == pytest.approx((2.0, 2.0))


# ------------------------------------------------------------ colours in planes


@pytest.mark.parametrize("layout", [TILED, STRIPS], ids=["tiles", "strips"])
@pytest.mark.parametrize(
    ("channels", "notes"),
    [
        ({}, (NO_COLOURS,)),
        ({"Name": ["Red", "Green", "Blue"]}, ()),
        ({"Name": ["R", "G", "B"]}, ()),
        ({"Name": ["Channel 0", "Channel 1", "Channel 2"]}, (NO_COLOURS,)),
        ({"Color": [-16776961, 16711935, 65535]}, ()),
    ],
    ids=["no names", "names", "letters", "numbers", "colours"],
)
def test_red_green_and_blue_as_three_grey_planes_are_read_as_colours(
    tmp_path, layout, channels, notes
):
    """raw2ometiff writes them so by default; the first plane was read as a grey slide."""
    more = {"Channel": channels} if channels else {}
    path = write_ome(tmp_path / "a.ome.tif", (PLANES, about(0.5, "CYX", **more)), **layout)
    pixels, mpp, _, message = read(path)
    np.testing.assert_array_equal(pixels, SLIDE)
    assert mpp == (0.5, 0.5)
    assert message == notes


@pytest.mark.parametrize(
    ("axes", "channels"),
    [
        ("CYX", {"Name": ["DAPI", "FITC", "Cy3"]}),
        ("CYX", {"Color": [65535, 16711935, -16776961]}),
        ("CYX", {"EmissionWavelength": [450, 520, 570]}),
    ],
    ids=["names", "other colours", "wavelengths"],
)
def test_other_channels_are_refused_by_name_never_read_as_grey(tmp_path, axes, channels):
    path = write_ome(tmp_path / "a.ome.tif", (PLANES, about(0.5, axes, Channel=channels)))
    message = refusal(path)
    assert "3 channels" in message
    assert "not red, green and blue" in message
    assert "Name" not in channels or "(DAPI, FITC, Cy3)" in message


@pytest.mark.parametrize("n_channels", [2, 4, 5])
def test_another_number_of_channels_is_refused(tmp_path, n_channels):
    pixels = np.stack([PLANES[0]] * n_channels)
    path = write_ome(tmp_path / "a.ome.tif", (pixels, about(0.5, "CYX")))
    assert f"{n_channels} channels" in refusal(path)


def test_planes_have_a_pyramid_each(tmp_path):
    path = tmp_path / "a.ome.tif"
    half = slides.noise(320, 256, seed=3)
    with tifffile.TiffWriter(path, ome=True) as tif:
        options = {"photometric": "minisblack", **TILED}
        tif.write(PLANES, metadata=about(0.5, "CYX"), subifds=1, **options)
        tif.write(np.ascontiguousarray(half.transpose(2, 0, 1)), subfiletype=1, **options)
    with open_slide(path) as slide:
        assert slide.level_sizes == ((640, 512), (320, 256))
        np.testing.assert_array_equal(slide.read_region((0, 0), 1, (320, 256)), half)
        part = slide.read_region((101, 77), 0, (90, 130))
    np.testing.assert_array_equal(part, SLIDE[77:207, 101:191])


@pytest.mark.parametrize("compression", [None, "jpeg", "lzw"])
def test_planes_are_decoded_each_by_its_own_page(tmp_path, compression):
    path = write_ome(
        tmp_path / "a.ome.tif",
        (PLANES, about(0.5, "CYX")),
        tile=(64, 64),
        compression=compression,
    )
    expected = np.moveaxis(tifffile.imread(path), 0, -1)
    np.testing.assert_array_equal(read(path)[0], expected)


def test_the_planes_lie_where_the_xml_says_they_do(tmp_path):
    """Blue is stored first here."""
    path = tmp_path / "a.ome.tif"
    blocks = "".join(f'<TiffData FirstC="{c}" IFD="{2 - c}" PlaneCount="1"/>' for c in range(3))
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0"><Pixels DimensionOrder="XYCZT" SizeX="640" SizeY="512" SizeC="3" '
        'SizeZ="1" SizeT="1" Type="uint8" PhysicalSizeX="250" PhysicalSizeXUnit="nm">'
        f"{blocks}</Pixels></Image></OME>"
    )
    with tifffile.TiffWriter(path) as tif:
        for number, plane in enumerate(PLANES[::-1]):
            description = xml if number == 0 else None
            tif.write(plane, description=description, metadata=None, photometric=1, **TILED)
    pixels, mpp, _, _ = read(path)
    np.testing.assert_array_equal(pixels, SLIDE)
    assert mpp == (0.25, 0.25)


def ramp(*colour: int) -> np.ndarray:
    return np.outer(colour, np.arange(256)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("more", "is_rgb"),
    [
        ({"mode": "composite"}, True),
        ({"mode": "composite", "LUTs": [ramp(1, 0, 0), ramp(0, 1, 0), ramp(0, 0, 1)]}, True),
        ({"mode": "composite", "LUTs": [ramp(0, 0, 1), ramp(0, 1, 0), ramp(1, 0, 0)]}, False),
        ({"mode": "grayscale"}, False),
    ],
    ids=["composite", "its tables", "other tables", "greyscale"],
)
def test_an_imagej_composite_is_read_as_rgb_or_refused(tmp_path, more, is_rgb):
    path = tmp_path / "a.tif"
    metadata = {"axes": "CYX", "unit": "um", **more}
    tifffile.imwrite(path, PLANES, imagej=True, resolution=(2, 2), metadata=metadata)
    if is_rgb:
        pixels, mpp, _, _ = read(path)
        np.testing.assert_array_equal(pixels, SLIDE)
        assert mpp == (0.5, 0.5)
    else:
        assert "3 channels" in refusal(path)


def test_an_imagej_rgb_stack_is_read_by_its_labels(tmp_path):
    metadata = {"axes": "ZYX", "Labels": ["Red", "Green", "Blue"]}
    tifffile.imwrite(tmp_path / "a.tif", PLANES, imagej=True, metadata=metadata)
    np.testing.assert_array_equal(read(tmp_path / "a.tif")[0], SLIDE)


@pytest.mark.parametrize("layout", [TILED, STRIPS], ids=["tiles", "strips"])
@pytest.mark.parametrize("pixels", [PLANES, np.stack([SLIDE] * 5)], ids=["planes", "stack"])
def test_several_images_of_one_size_are_refused_where_nothing_says_what_they_are(
    tmp_path, layout, pixels
):
    """OpenSlide, and the reader here, took the first."""
    kind = "rgb" if pixels.shape[-1] == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=kind, **layout)
    assert f"holds {len(pixels)} images of 640 x 512 pixels" in refusal(tmp_path / "a.tif")


def test_a_transparency_mask_of_the_slides_size_is_no_second_slide(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(SLIDE, photometric="rgb", metadata=None, **TILED)
        tif.write(SLIDE[..., 0] > 9, subfiletype=4, metadata=None)
    np.testing.assert_array_equal(read(tmp_path / "a.tif")[0], SLIDE)


def test_a_small_picture_before_the_slide_is_not_taken_for_it(tmp_path):
    """OpenSlide takes the first image of a plain TIFF."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(MACRO, photometric="rgb", metadata=None, **TILED)
        tif.write(
            SLIDE,
            photometric="rgb",
            metadata=None,
            resolution=(20_000, 20_000),
            resolutionunit="CENTIMETER",
            **TILED,
        )
    pixels, mpp, _, _ = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(pixels, SLIDE)
    assert mpp == pytest.approx((0.5, 0.5))


# ------------------------------------------------------------ focal stacks and time series


@pytest.mark.parametrize("n_z", [2, 3, 4, 7])
@pytest.mark.parametrize("order", ["ZYXS", "ZCYX", "CZYX"])
def test_of_a_focal_stack_the_middle_plane_is_read_with_a_note(tmp_path, n_z, order):
    stack = np.stack([slides.noise(160, 130, seed=z) for z in range(n_z)])
    stored = {
        "ZYXS": stack,
        "ZCYX": stack.transpose(0, 3, 1, 2),
        "CZYX": stack.transpose(3, 0, 1, 2),
    }[order]
    path = write_ome(tmp_path / "a.ome.tif", (np.ascontiguousarray(stored), about(0.5, order)))
    pixels, _, _, notes = read(path)
    np.testing.assert_array_equal(pixels, stack[n_z // 2])
    middle = f"a stack of {n_z} focal planes: the middle one, number {n_z // 2 + 1}, is read"
    assert middle in notes


def test_of_an_imagej_focal_stack_the_middle_plane_is_read_with_a_note(tmp_path):
    stack = np.stack([slides.noise(160, 130, seed=z) for z in range(5)])
    metadata = {"axes": "ZYXS", "unit": "um"}
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, resolution=(2, 2), metadata=metadata)
    pixels, _, _, notes = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(pixels, stack[2])
    assert "number 3, is read" in notes[0]


def test_a_time_series_is_refused(tmp_path):
    stack = np.stack([SLIDE] * 3)
    path = write_ome(tmp_path / "a.ome.tif", (stack, about(0.5, "TYXS")))
    assert "a time series of 3 images" in refusal(path)
    tifffile.imwrite(tmp_path / "b.tif", stack, imagej=True, metadata={"axes": "TYXS"})
    assert "a time series of 3 images" in refusal(tmp_path / "b.tif")


def test_the_planes_are_those_that_tifffile_finds(tmp_path):
    """Any order of dimensions, against tifffile's own reading of the XML."""
    rng = np.random.default_rng(7)
    shape = {"T": 1, "Z": 3, "C": 3, "Y": 96, "X": 112}
    for order in ("TZCYX", "TCZYX", "ZTCYX", "ZCTYX", "CTZYX", "CZTYX"):
        pixels = rng.integers(0, 256, [shape[axis] for axis in order], np.uint8)
        path = write_ome(tmp_path / f"{order}.ome.tif", (pixels, about(0.5, order)))
        with tifffile.TiffFile(path) as tif:
            axes, stored = tif.series[0].axes, tif.series[0].asarray()
        middle = np.take(stored, 1, axes.index("Z"))
        expected = np.moveaxis(middle, axes.replace("Z", "").index("C"), -1)
        np.testing.assert_array_equal(read(path)[0], expected)


# ------------------------------------------------------------ pixels that are not read


@pytest.mark.parametrize("layout", [TILED, STRIPS], ids=["tiles", "strips"])
@pytest.mark.parametrize("kind", ["plain", "ome"])
@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (SLIDE.view(np.int8), "signed samples of 8 bits"),
        (SLIDE.astype(np.int16), "signed samples of 16 bits"),
        (SLIDE.astype(np.float32), "floating-point samples of 32 bits"),
        (SLIDE.astype(np.uint32), "32 bits per sample"),
        (SLIDE[..., 0].astype(np.uint16), "16 bits per sample"),
        (SLIDE[..., 0] > 99, "1 bit per sample"),
    ],
    ids=["int8", "int16", "float", "uint32", "grey16", "1-bit"],
)
def test_samples_that_are_not_read_are_named_without_advice_to_copy_the_file(
    tmp_path, layout, kind, pixels, message
):
    """OpenSlide opens some and shows wrong colours, or fails at every patch."""
    path = tmp_path / "a.tif"
    options = {"photometric": "rgb" if pixels.ndim == 3 else "minisblack", **layout}
    if kind == "ome" and pixels.dtype != bool:
        axes = "YXS" if pixels.ndim == 3 else "YX"
        tifffile.imwrite(path, pixels, ome=True, metadata=about(0.5, axes), **options)
    else:
        tifffile.imwrite(path, pixels, **options)
    assert message in refusal(path, UnsupportedSlideError)


@pytest.mark.parametrize("code", [34713, 34720, int(tifffile.COMPRESSION.JBIG2), 64999])
@pytest.mark.parametrize("layout", [TILED, STRIPS], ids=["tiles", "strips"])
def test_a_compression_that_is_not_read_is_named(tmp_path, layout, code):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, SLIDE, photometric="rgb", metadata=None, **layout)
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[0].tags["Compression"].overwrite(code)
    message = refusal(path, UnsupportedSlideError)
    assert "compression" in message
    assert "convert it" in message


@pytest.mark.parametrize("tile", [(64, 64), None], ids=["tiles", "strips"])
@pytest.mark.parametrize("bits", [8, 12], ids=["jpeg-ls", "12-bit"])
def test_tiles_of_another_kind_of_jpeg_are_named_when_the_slide_is_opened(tmp_path, tile, bits):
    """Every patch failed, with the advice to copy the file again."""
    path = tmp_path / "a.tif"
    options = {"tile": tile} if tile else {"rowsperstrip": 64}
    tifffile.imwrite(path, SLIDE, photometric="rgb", compression="jpeg", **options)
    with tifffile.TiffFile(path) as tif:
        start = tif.pages[0].dataoffsets[0]
    data = bytearray(path.read_bytes())
    frame = data.index(b"\xff\xc0", start)
    if bits == 8:
        data[frame + 1] = 0xF7
    data[frame + 4] = bits
    path.write_bytes(data)
    assert "JPEG-LS" in refusal(path, UnsupportedSlideError) or bits == 12


# ------------------------------------------------------------ OME-XML


def test_nonsense_in_ome_xml_is_no_image():
    assert parse_ome(None, "a.tif") == ()
    assert parse_ome("<OME", "a.tif") == ()
    sizes = 'SizeX="9" SizeY="9" SizeC="1" SizeZ="{}" SizeT="1"'
    for n_z in ("0", "-1", "99999999999"):
        xml = f"<OME><Image><Pixels {sizes.format(n_z)}/></Image></OME>"
        assert parse_ome(xml, "a.tif") == ()


def test_a_damaged_plane_count_takes_no_memory():
    xml = (
        '<OME><Image><Pixels SizeX="9" SizeY="9" SizeC="1" SizeZ="2" SizeT="1">'
        '<TiffData IFD="0" PlaneCount="999999999999"/></Pixels></Image></OME>'
    )
    [image] = parse_ome(xml, "a.tif")
    assert image.find_pages(1, 5) == {(0, 0, 0): 0, (0, 1, 0): 1}
