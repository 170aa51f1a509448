"""What the TIFF reader reads, and what it refuses."""

import contextlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.helpers import slides
from tiling.errors import SlideError
from tiling.readers import tiff_images, tiff_levels
from tiling.readers.tiff_reader import TiffReader

PIXELS = slides.noise(203, 131)
HALF = slides.noise(101, 65, seed=1)


def read_all(path: Path, level: int = 0):
    with TiffReader(path) as slide:
        return slide.read_region((0, 0), level, slide.level_sizes[level])


@pytest.mark.parametrize("compression", [None, "deflate", "lzw"])
@pytest.mark.parametrize("rows", [1, 16, 131])
def test_strips_are_read_whole_and_in_part(tmp_path: Path, compression, rows):
    path = slides.write_slide(
        tmp_path / "a.tif", [PIXELS], tile=None, compression=compression, rowsperstrip=rows
    )

    np.testing.assert_array_equal(read_all(path), PIXELS)
    with TiffReader(path) as slide:
        part = slide.read_region((50, 40), 0, (30, 20))
    np.testing.assert_array_equal(part, PIXELS[40:60, 50:80])


def test_one_huge_uncompressed_strip_is_cut_not_loaded(tmp_path: Path):
    pixels = slides.noise(4000, 3000)
    path = slides.write_slide(
        tmp_path / "a.tif", [pixels], tile=None, compression=None, rowsperstrip=3000
    )
    with TiffReader(path) as slide:
        tracemalloc.start()
        region = slide.read_region((100, 2900), 0, (50, 50))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    np.testing.assert_array_equal(region, pixels[2900:2950, 100:150])
    assert peak < 16 * 2**20  # the strip has 36 MB; memory for tiles comes 12 MiB at a time


def test_one_huge_compressed_strip_is_refused_with_a_remedy(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tiff_levels, "LARGEST_SEGMENT_BYTES", 10_000)
    path = slides.write_slide(tmp_path / "a.tif", [PIXELS], tile=None, rowsperstrip=131)

    with pytest.raises(SlideError, match=r"a\.tif: .*203 x 131 px.*tiled TIFF"):
        TiffReader(path)


@pytest.mark.parametrize("subifds", [False, True], ids=["pages", "subifds"])
def test_pyramids_in_pages_and_in_subifds(tmp_path: Path, subifds):
    path = slides.write_slide(tmp_path / "a.tif", [PIXELS, HALF], subifds=subifds)

    with TiffReader(path) as slide:
        assert slide.level_sizes == ((203, 131), (101, 65))
    np.testing.assert_array_equal(read_all(path, 1), HALF)


def test_a_label_of_another_shape_is_no_level(tmp_path: Path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(PIXELS, tile=(64, 64), photometric="rgb", metadata=None)
        tif.write(slides.noise(50, 50), photometric="rgb", subfiletype=1, metadata=None)

    with TiffReader(tmp_path / "a.tif") as slide:
        assert slide.level_sizes == ((203, 131),)


def test_grey_is_shown_as_equal_colours(tmp_path: Path):
    path = slides.write_slide(tmp_path / "a.tif", [PIXELS[..., 0]], photometric="minisblack")

    np.testing.assert_array_equal(read_all(path), np.repeat(PIXELS[..., :1], 3, axis=-1))


def test_planes_of_red_green_and_blue(tmp_path: Path):
    planes = np.ascontiguousarray(PIXELS.transpose(2, 0, 1))
    path = slides.write_slide(tmp_path / "a.tif", [planes], planarconfig="separate")

    np.testing.assert_array_equal(read_all(path), PIXELS)


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_alpha_is_composed_on_white(tmp_path: Path, kind):
    alpha = np.full((131, 203, 1), 255, np.uint8)
    alpha[:40] = 0
    alpha[40:80] = 100
    colour = PIXELS if kind == "unassalpha" else np.minimum(PIXELS, alpha)
    rgba = np.concatenate([colour, alpha], axis=-1)
    path = slides.write_slide(tmp_path / "a.tif", [rgba], extrasamples=[kind])
    share = alpha / 255 if kind == "unassalpha" else 1.0

    expected = np.rint(colour * share + 255 - alpha.astype(float))

    np.testing.assert_array_equal(read_all(path), expected)
    assert (read_all(path)[:40] == 255).all() or kind == "assocalpha"


def test_a_file_tile_that_is_not_stored_is_white(tmp_path: Path):
    path = slides.write_slide(tmp_path / "a.tif", [PIXELS], compression=None)
    with tifffile.TiffFile(path, mode="r+") as tif:
        counts = list(tif.pages[0].databytecounts)
        counts[1] = 0
        tif.pages[0].tags["TileByteCounts"].overwrite(counts)

    pixels = read_all(path)

    assert (pixels[:64, 64:128] == 255).all()
    np.testing.assert_array_equal(pixels[64:], PIXELS[64:])


@pytest.mark.parametrize(
    ("pixels", "options", "message"),
    [
        (PIXELS.astype(np.uint16), {}, "16 bits per sample where 8-bit RGB"),
        (PIXELS[..., 0].astype(np.float32), {"photometric": "minisblack"}, "32 bits"),
        (PIXELS[..., 0], {"photometric": "miniswhite"}, "kind MINISWHITE"),
        (
            PIXELS[..., 0],
            {"photometric": "palette", "colormap": np.zeros((3, 256), "u2")},
            "PALETTE",
        ),
        (PIXELS[..., :2], {"photometric": "minisblack", "planarconfig": "contig"}, "2 samples"),
    ],
    ids=["16-bit", "float", "white-is-zero", "palette", "two-channels"],
)
def test_other_pixels_are_refused_by_name(tmp_path: Path, pixels, options, message):
    path = slides.write_slide(tmp_path / "a.tif", [pixels], **options)

    with pytest.raises(SlideError, match=message):
        TiffReader(path)


@pytest.mark.parametrize(
    ("counts", "message"),
    [(2**32 - 1, "the file ends before file tile 1"), (2**21, "has 2097152 bytes")],
    ids=["more than the file has", "more than pixels need"],
)
def test_a_directory_that_lists_huge_file_tiles_takes_no_memory(tmp_path: Path, counts, message):
    path = slides.write_slide(tmp_path / "a.tif", [PIXELS], bigtiff=True)
    with tifffile.TiffFile(path, mode="r+") as tif:
        tag = tif.pages[0].tags["TileByteCounts"]
        tag.overwrite([tag.value[0], counts, *tag.value[2:]])
    with path.open("ab") as file:
        file.truncate(2**22)

    with pytest.raises(SlideError, match=message):
        read_all(path)


def test_a_compression_that_cannot_be_read_is_named(tmp_path: Path):
    path = slides.write_slide(tmp_path / "a.tif", [PIXELS])
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[0].tags["Compression"].overwrite(tifffile.COMPRESSION.PIXARFILM)

    with pytest.raises(SlideError, match="PIXARFILM"):
        TiffReader(path)


def test_more_images_than_a_slide_has_are_not_read_on_and_on(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tiff_images, "MOST_IMAGES", 3)
    path = slides.write_slide(tmp_path / "a.tif", [PIXELS] * 4)

    with pytest.raises(SlideError, match="more than 3 images"):
        TiffReader(path)


def test_a_damaged_directory_is_an_error_of_the_slide(tmp_path: Path):
    path = slides.write_slide(tmp_path / "a.tif", [PIXELS])
    data = path.read_bytes()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        broken = bytearray(data)
        for place in rng.integers(4, 300, 25):
            broken[place] = int(rng.integers(256))
        path.write_bytes(broken)
        with contextlib.suppress(SlideError):  # anything else fails the test
            read_all(path)


class TestResolution:
    """Places of a TIFF that can record it."""

    @staticmethod
    def mpp_of(path: Path):
        with TiffReader(path) as slide:
            return slide.mpp

    @pytest.mark.parametrize("unit", ["nm", "µm", "mm"])
    def test_ome_xml(self, tmp_path: Path, unit):
        path = slides.write_ome(tmp_path / "a.ome.tif", [PIXELS], mpp=0.25, unit=unit)
        assert self.mpp_of(path) == pytest.approx((0.25, 0.25))

    @pytest.mark.parametrize(("unit", "per_cm"), [("CENTIMETER", 1.0), ("INCH", 2.54)])
    def test_resolution_tags(self, tmp_path: Path, unit, per_cm):
        path = slides.write_slide(
            tmp_path / "a.tif",
            [PIXELS],
            mpp=None,
            resolution=(40_000 * per_cm, 20_000 * per_cm),
            resolutionunit=unit,
        )
        assert self.mpp_of(path) == pytest.approx((0.25, 0.5), rel=1e-5)

    def test_imagej(self, tmp_path: Path):
        tifffile.imwrite(
            tmp_path / "a.tif", PIXELS, imagej=True, resolution=(2.0, 4.0), metadata={"unit": "um"}
        )
        assert self.mpp_of(tmp_path / "a.tif") == pytest.approx((0.5, 0.25))

    def test_aperio_description(self, tmp_path: Path):
        assert (
            self.mpp_of(slides.write_svs(tmp_path / "a.svs", [PIXELS], mpp=0.499)) == (0.499,) * 2
        )

    @pytest.mark.parametrize("dpi", [72, 96, 300])
    def test_a_printers_resolution_is_none(self, tmp_path: Path, dpi):
        path = slides.write_slide(
            tmp_path / "a.tif", [PIXELS], mpp=None, resolution=(dpi, dpi), resolutionunit="INCH"
        )
        assert self.mpp_of(path) is None

    def test_no_unit_is_no_resolution(self, tmp_path: Path):
        path = slides.write_slide(
            tmp_path / "a.tif",
            [PIXELS],
            mpp=None,
            resolution=(40_000, 40_000),
            resolutionunit="NONE",
        )
        assert self.mpp_of(path) is None

    @pytest.mark.parametrize("size", ["0", "-1", "nan", "inf"])
    def test_nonsense_in_ome_xml_is_none(self, tmp_path: Path, size):
        path = slides.write_ome(tmp_path / "a.ome.tif", [PIXELS], mpp=0.25)
        text = path.read_bytes()
        padded = f'PhysicalSizeX="{size}"'.ljust(len('PhysicalSizeX="0.25"')).encode()
        path.write_bytes(text.replace(b'PhysicalSizeX="0.25"', padded))
        assert self.mpp_of(path) is None
