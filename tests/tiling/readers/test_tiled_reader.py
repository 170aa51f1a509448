"""The reader of tiled TIFF and SVS: OpenSlide's pixels, each file tile decoded once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import slides
from tests.helpers.real_data import real_data
from tiling.errors import SlideError
from tiling.readers import tiff_pixels
from tiling.readers.openslide_reader import OpenSlideReader
from tiling.readers.tiff_reader import TiffReader
from tiling.readers.tile_cache import TileCache
from tiling.readers.tiled_tiff_reader import TiledTiffReader
from tiling.slide import open_slide

LEVELS = [slides.tissue(643, 517), slides.tissue(160, 129, seed=1), slides.tissue(81, 66, seed=2)]
YCBCR = {"compression": "jpeg", "photometric": "ycbcr"}
KINDS = {
    "svs-420": (slides.write_svs, {**YCBCR, "subsampling": (2, 2), "tile": (80, 80)}),
    "svs-422": (slides.write_svs, {**YCBCR, "subsampling": (2, 1)}),
    "svs-rgb": (slides.write_svs, {"compression": "jpeg"}),
    "svs-jp2k": (slides.write_svs, {"compression": tifffile.COMPRESSION.APERIO_JP2000_RGB}),
    "svs-lzw": (slides.write_svs, {"compression": "lzw", "predictor": True}),
    "tif-444": (slides.write_slide, {**YCBCR, "subsampling": (1, 1), "tile": (48, 80)}),
    "tif-420": (slides.write_slide, {**YCBCR, "subsampling": (2, 2), "bigtiff": True}),
    "tif-large-tiles": (slides.write_slide, {"tile": (512, 1024)}),
    "tif-raw": (slides.write_slide, {"compression": None}),
    "tif-one-level": (slides.write_slide, {"compression": "jpeg"}),
}


@pytest.fixture(scope="module", params=KINDS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    write, options = KINDS[request.param]
    levels = LEVELS[:1] if request.param == "tif-one-level" else LEVELS
    return write(tmp_path_factory.mktemp("tiled") / "a.tif", levels, **options)


def assert_equal_everywhere(path: Path, **requests) -> None:
    with TiledTiffReader(path) as slide, OpenSlideReader(path) as oracle:
        region = slide.read_region(**requests)
        np.testing.assert_array_equal(region, oracle.read_region(**requests))


class TestEqualsOpenSlide:
    """On levels, between their pixels, at edges and outside, whatever the file's kind."""

    @settings(max_examples=25)
    @given(
        location=st.tuples(st.integers(-150, 800), st.integers(-150, 700)),
        level=st.integers(0, 2),
        size=st.tuples(st.integers(0, 300), st.integers(0, 300)),
    )
    def test_any_region(self, path: Path, location, level, size):
        with TiledTiffReader(path) as slide:
            level = min(level, len(slide.level_sizes) - 1)
        assert_equal_everywhere(path, location=location, level=level, size=size)

    def test_whole_levels(self, path: Path):
        with TiledTiffReader(path) as slide:
            sizes = slide.level_sizes
        for level, size in enumerate(sizes):
            assert_equal_everywhere(path, location=(0, 0), level=level, size=size)

    def test_description(self, path: Path):
        with TiledTiffReader(path) as slide, OpenSlideReader(path) as oracle:
            for name in (
                "vendor", "size", "mpp", "level_sizes", "level_downsamples", "bounds",
                "objective_power",
            ):  # fmt: skip
                assert getattr(slide, name) == getattr(oracle, name)

    def test_is_chosen_and_decodes_here(self, path: Path):
        with open_slide(path) as slide:
            assert isinstance(slide, TiledTiffReader)
            slide.read_region((0, 0), 0, (200, 200))
            assert slide.n_decoded > 0


class TestRealSlides:
    """The project's own examples."""

    def slide(self, name: str) -> Path:
        return real_data(f"slides/{name}")

    def test_rgb_jpeg_without_its_marker(self):
        """Decoded as YCbCr, which the JPEG alone suggests, it is off by 49 levels."""
        path = self.slide("CMU-1-Small-Region.svs")
        with open_slide(path) as slide, OpenSlideReader(path) as oracle:
            assert isinstance(slide, TiledTiffReader)
            whole = slide.read_region((-10, -10), 0, (2240, 2990))
            np.testing.assert_array_equal(whole, oracle.read_region((-10, -10), 0, (2240, 2990)))

    @pytest.mark.parametrize("name", ["nuclei-dapi.ndpi", "camelyon-overview-jpeg.dcm"])
    def test_others_go_through_openslide(self, name):
        with open_slide(self.slide(name)) as slide:
            assert isinstance(slide, OpenSlideReader)


class TestTilesNotStored:
    def test_of_a_plain_tiff_are_white(self, tmp_path: Path):
        path = slides.write_slide(tmp_path / "a.tif", LEVELS[:1], compression="jpeg")
        slides.drop_file_tile(path, 13)
        assert_equal_everywhere(path, location=(100, 40), level=0, size=(200, 150))
        with open_slide(path) as slide:
            assert isinstance(slide, TiledTiffReader)
            assert (slide.read_region((128, 64), 0, (64, 64)) == 255).all()

    @pytest.mark.parametrize("page", [0, 2])
    def test_of_aperio_are_made_up_by_openslide(self, tmp_path: Path, page):
        path = slides.write_svs(tmp_path / "a.svs", LEVELS)
        slides.drop_file_tile(path, 1, page=page)
        for level in range(3):
            assert_equal_everywhere(path, location=(0, 0), level=level, size=(160, 130))


class TestDamage:
    @pytest.mark.parametrize("compression", ["jpeg", "deflate", "lzw"])
    def test_is_judged_as_openslide_does(self, tmp_path: Path, compression):
        """Damage that libjpeg conceals is read as concealed; the rest is an error, never white."""
        path = slides.write_slide(tmp_path / "a.tif", LEVELS[:1], compression=compression)
        with tifffile.TiffFile(path) as tif:
            page = tif.pages[0]
            offset, count = page.dataoffsets[13], page.databytecounts[13]
        data = path.read_bytes()
        refused = []
        for seed in range(24):
            rng = np.random.default_rng(seed)
            broken = bytearray(data)
            start = offset + int(rng.integers(count)) if seed % 2 else offset
            broken[start : offset + count : 1 + seed] = bytes(
                len(broken[start : offset + count : 1 + seed])
            )
            path.write_bytes(broken)
            found = self.read(path, TiledTiffReader)
            expected = self.read(path, OpenSlideReader)
            np.testing.assert_array_equal(found, expected)
            refused.append(expected is None)
        assert any(refused)  # or nothing was damaged

    @staticmethod
    def read(path: Path, reader):
        with reader(path) as slide:
            try:
                return slide.read_region((120, 60), 0, (90, 90))
            except SlideError:
                return None

    def test_a_jpeg_of_another_size_than_its_tile_is_left_to_openslide(self, tmp_path: Path):
        path = slides.write_slide(tmp_path / "a.tif", LEVELS[:1], compression="jpeg")
        with tifffile.TiffFile(path, mode="r+") as tif:
            tif.pages[0].aspage().tags["TileWidth"].overwrite(80)
        try:
            with open_slide(path) as slide:
                pixels = slide.read_region((0, 0), 0, (70, 50))
        except SlideError:
            return
        with OpenSlideReader(path) as oracle:
            np.testing.assert_array_equal(pixels, oracle.read_region((0, 0), 0, (70, 50)))


class TestOtherLayouts:
    """What is not known to come out equal is refused here, and opened by another reader."""

    @pytest.mark.parametrize(
        "options",
        [
            {"photometric": "minisblack"},
            {"extrasamples": ["unassalpha"]},
            {"planarconfig": "separate"},
        ],
        ids=["grey", "alpha", "planes"],
    )
    def test_are_refused(self, tmp_path: Path, options):
        pixels = LEVELS[0]
        if "photometric" in options:
            pixels = pixels[..., 0]
        elif "extrasamples" in options:
            pixels = np.concatenate([pixels, pixels[..., :1]], axis=-1)
        else:
            pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        path = slides.write_slide(tmp_path / "a.tif", [pixels], **options)
        with pytest.raises(SlideError):
            TiledTiffReader(path)
        with open_slide(path) as slide:
            assert isinstance(slide, OpenSlideReader)

    def test_a_probe_that_differs_turns_the_reader_down(self, tmp_path: Path, monkeypatch):
        path = slides.write_slide(tmp_path / "a.tif", LEVELS)
        right = tiff_pixels.make_decoder

        def wrong(level):
            decode = right(level)
            return lambda *arguments: decode(*arguments) ^ 1

        monkeypatch.setattr(tiff_pixels, "make_decoder", wrong)
        with pytest.raises(SlideError, match="unlike OpenSlide's"):
            TiledTiffReader(path)
        with open_slide(path) as slide:
            assert isinstance(slide, OpenSlideReader)

    @pytest.mark.parametrize(
        ("compression", "reader"), [(33003, OpenSlideReader), (34712, TiffReader)]
    )
    def test_other_jpeg_2000_goes_to_who_reads_it(self, tmp_path: Path, compression, reader):
        """Aperio's YCbCr kind is OpenSlide's; the standard's number OpenSlide refuses."""
        # Equal colours: the same grey in RGB and, with neutral chroma, in YCbCr.
        grey = np.repeat(np.arange(0, 256, 2, dtype=np.uint8)[None], 128, axis=0)
        chroma = np.full_like(grey, 128) if compression == 33003 else grey
        tile = imagecodecs.jpeg2k_encode(
            np.stack([grey, chroma, chroma], axis=-1), codecformat="j2k", level=0, reversible=True,
            mct=False,
        )  # fmt: skip
        path = tmp_path / "a.svs"
        tifffile.imwrite(
            path, iter([tile] * 2), shape=(128, 256, 3), dtype=np.uint8, tile=(128, 128),
            compression=compression, photometric="ycbcr" if compression == 33003 else "rgb",
            description="Aperio Image Library v11\r\n256x128 |MPP = 0.5", metadata=None,
        )  # fmt: skip
        with open_slide(path) as slide:
            assert isinstance(slide, reader)
            region = slide.read_region((0, 0), 0, (256, 128))
        np.testing.assert_array_equal(region, np.tile(grey[..., None], (1, 2, 3)))

    def test_big_endian(self, tmp_path: Path):
        pixels = LEVELS[0]
        with tifffile.TiffWriter(tmp_path / "a.tif", byteorder=">") as tif:
            tif.write(pixels, tile=(64, 64), compression="deflate", photometric="rgb",
                      predictor=True, metadata=None)  # fmt: skip
        with open_slide(tmp_path / "a.tif") as slide:
            np.testing.assert_array_equal(slide.read_region((0, 0), 0, slide.size), pixels)

    def test_ome_tiff_with_a_pyramid_in_subifds(self, tmp_path: Path):
        path = slides.write_ome(tmp_path / "a.ome.tif", LEVELS, compression="jpeg")
        with open_slide(path) as slide, tifffile.TiffFile(path) as tif:
            assert isinstance(slide, TiffReader)
            for level, size in enumerate(slide.level_sizes):
                np.testing.assert_array_equal(
                    slide.read_region((0, 0), level, size), tif.series[0].levels[level].asarray()
                )


class TestOncePerPass:
    def test_a_raster_pass_decodes_each_tile_once(self, tmp_path: Path):
        path = slides.write_slide(tmp_path / "a.tif", LEVELS, compression="jpeg")
        with TiledTiffReader(path) as slide:
            before = slide.n_decoded
            for y in range(0, 450, 50):
                for x in range(0, 550, 50):
                    slide.read_region((x, y), 0, (100, 100))
            assert slide.n_decoded - before <= 11 * 9

    def test_threads_share_what_they_decode(self, tmp_path: Path):
        path = slides.write_slide(tmp_path / "a.tif", LEVELS, compression="jpeg")
        places = [(x, y) for y in range(0, 450, 50) for x in range(0, 550, 50)] * 3
        with TiledTiffReader(path) as slide, OpenSlideReader(path) as oracle:
            before = slide.n_decoded
            with ThreadPoolExecutor(6) as pool:
                found = list(pool.map(lambda at: slide.read_region(at, 0, (100, 100)), places))
            assert slide.n_decoded - before <= 11 * 9
            for place, region in zip(places, found, strict=True):
                np.testing.assert_array_equal(region, oracle.read_region(place, 0, (100, 100)))

    def test_threads_get_right_pixels_while_memory_is_used_again(self, tmp_path: Path):
        path = slides.write_slide(tmp_path / "a.tif", LEVELS, compression="jpeg")
        rng = np.random.default_rng(0)
        places = rng.integers(0, 500, (300, 2)).tolist()
        with TiledTiffReader(path, cache_bytes=50_000) as slide, OpenSlideReader(path) as oracle:
            with ThreadPoolExecutor(6) as pool:
                found = list(pool.map(lambda at: slide.read_region(at, 0, (100, 100)), places))
            for place, region in zip(places, found, strict=True):
                np.testing.assert_array_equal(region, oracle.read_region(place, 0, (100, 100)))

    def test_no_more_is_kept_than_was_set(self, tmp_path: Path):
        path = slides.write_slide(tmp_path / "a.tif", LEVELS)
        with TiledTiffReader(path, cache_bytes=100_000) as slide:
            for y in range(0, 450, 50):
                slide.read_region((0, y), 0, (643, 100))
                assert slide._pixels.cache.kept_bytes <= 100_000


class TestTileCache:
    SHAPE = (4, 5, 3)

    def fill(self, value):
        def decode(buffer):
            buffer.fill(value)
            return buffer

        return decode

    def test_one_decodes_while_others_wait(self):
        cache, calls, start = TileCache(10_000), [], threading.Barrier(5)

        def decode(buffer):
            calls.append(1)
            time.sleep(0.02)
            buffer.fill(7)
            return buffer

        def borrow(_):
            start.wait()
            return cache.borrow("a", decode, self.SHAPE).pixels.copy()

        with ThreadPoolExecutor(5) as pool:
            found = list(pool.map(borrow, range(5)))
        assert len(calls) == 1
        assert all((pixels == 7).all() for pixels in found)

    def test_a_failure_reaches_all_and_is_not_kept(self):
        cache = TileCache(10_000)

        def fail(buffer):
            raise ValueError("damaged")

        for _ in range(2):
            with pytest.raises(ValueError, match="damaged"):
                cache.borrow("a", fail, self.SHAPE)
        assert (cache.borrow("a", self.fill(3), self.SHAPE).pixels == 3).all()

    def test_memory_in_use_is_not_used_again(self):
        cache = TileCache(60)  # one tile
        held = cache.borrow("a", self.fill(1), self.SHAPE)
        for number in range(2, 6):
            cache.give_back([cache.borrow(number, self.fill(number), self.SHAPE)])
        assert (held.pixels == 1).all()

    def test_memory_no_longer_in_use_is_used_again(self):
        cache = TileCache(60)
        first = cache.borrow("a", self.fill(1), self.SHAPE)
        memory = first.pixels
        cache.give_back([first])
        cache.give_back([cache.borrow("b", self.fill(2), self.SHAPE)])
        assert cache.borrow("c", self.fill(3), self.SHAPE).pixels is memory


def outcome(reader, path: Path, corner: tuple[int, int]):
    """The pixels of a file tile, or None if they cannot be decoded."""
    with reader(path) as slide:
        try:
            return slide.read_region(corner, 0, (64, 64))
        except SlideError:
            return None


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
def test_one_damaged_byte_of_a_jpeg_is_noticed_where_openslide_notices_it(tmp_path, photometric):
    """A lenient decoder conceals damage silently, with invented pixels."""
    options = {"compression": "jpeg", "photometric": photometric}
    if photometric == "ycbcr":
        options["subsampling"] = (2, 2)
    path = slides.write_slide(tmp_path / "a.tif", LEVELS, tile=(64, 64), **options)
    with tifffile.TiffFile(path) as tif:
        offset, count = (
            numbers[13] for numbers in (tif.pages[0].dataoffsets, tif.pages[0].databytecounts)
        )
    whole = path.read_bytes()
    n_noticed = 0
    places = [*range(2, min(count, 160), 3), *range(160, count, max(1, count // 40))]
    for place in places:
        damaged = bytearray(whole)
        damaged[offset + place] ^= 0x55
        path.write_bytes(bytes(damaged))
        ours, theirs = (
            outcome(reader, path, (128, 64)) for reader in (TiledTiffReader, OpenSlideReader)
        )
        assert (ours is None) == (theirs is None), f"byte {place}"
        if ours is not None:
            np.testing.assert_array_equal(ours, theirs, err_msg=f"byte {place}")
        n_noticed += ours is None
    assert 0 < n_noticed < len(places)
