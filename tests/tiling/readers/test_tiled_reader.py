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
from tiling.readers.tile_cache import Run, TileCache
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

    def test_nothing_is_kept_where_none_is_wanted(self, tmp_path: Path):
        path = slides.write_slide(tmp_path / "a.tif", LEVELS, compression="jpeg")
        with TiledTiffReader(path, cache_bytes=0) as slide, OpenSlideReader(path) as oracle:
            for place in ((-30, -20), (100, 90), (600, 480), (700, 700)):
                for level in (0, 1):
                    np.testing.assert_array_equal(
                        slide.read_region(place, level, (130, 110)),
                        oracle.read_region(place, level, (130, 110)),
                    )
            assert slide._pixels.cache.kept_bytes == 0

    def test_a_failed_tile_is_tried_again_by_the_threads_that_waited_for_it(self, tmp_path: Path):
        path = slides.write_slide(tmp_path / "a.tif", LEVELS, compression="jpeg")
        with TiledTiffReader(path) as slide:
            pixels = slide._pixels
            decode, calls, both = pixels._decode, [], threading.Barrier(2)

            def fail_first(*args):
                calls.append(1)
                if len(calls) == 1:
                    both.wait(5)
                    time.sleep(0.02)
                    raise SlideError("damaged")
                return decode(*args)

            def read(wait):
                if wait:
                    both.wait(5)
                return pixels.read_window(0, 3, 3, 20, 20)

            expected = pixels.read_window(0, 3, 3, 20, 20)
            pixels.drop_decoded()
            pixels._decode = fail_first
            with ThreadPoolExecutor(2) as pool:
                first, second = pool.submit(read, False), pool.submit(read, True)
                with pytest.raises(SlideError, match="damaged"):
                    first.result()
                np.testing.assert_array_equal(second.result(), expected)

    def test_no_more_is_kept_than_was_set(self, tmp_path: Path):
        path = slides.write_slide(tmp_path / "a.tif", LEVELS)
        with TiledTiffReader(path, cache_bytes=100_000) as slide:
            for y in range(0, 450, 50):
                slide.read_region((0, y), 0, (643, 100))
                assert slide._pixels.cache.kept_bytes <= 100_000


class TestTileCache:
    SHAPE = (4, 10, 3)  # two tiles side by side

    def borrow(self, cache: TileCache, key: object, owner: int = 0) -> Run:
        with cache.lock:
            (run,) = cache.borrow(owner, [(key, self.SHAPE, 2)])
        return run

    def cache(self, n_runs: int) -> TileCache:
        cache = TileCache(120 * n_runs)
        for owner in range(3):
            cache.want(owner, 120 * n_runs)
        return cache

    def test_a_tile_is_claimed_once_and_those_who_wait_learn_how_it_went(self):
        run = self.borrow(self.cache(2), "a")
        for outcome in (False, True):
            assert run.claim(1)
            assert not run.claim(1)
            with ThreadPoolExecutor(3) as pool:
                waiting = [pool.submit(run.wait, 1) for _ in range(3)]
                time.sleep(0.02)
                assert not any(one.done() for one in waiting)
                run.settle(1, done=outcome)
                assert [one.result() for one in waiting] == [outcome] * 3
        assert not run.claim(1)
        assert run.claim(0)

    def test_memory_in_use_is_not_used_again(self):
        cache = self.cache(1)
        held = self.borrow(cache, "a")
        held.pixels[:] = 1
        for number in range(2, 6):
            run = self.borrow(cache, number)
            run.pixels[:] = number
            cache.give_back([run])
        assert (held.pixels == 1).all()

    def test_memory_no_longer_in_use_is_used_again(self):
        cache = self.cache(1)
        first = self.borrow(cache, "a")
        cache.give_back([first])
        assert self.borrow(cache, "b").memory is first.memory

    def test_slides_share_one_budget(self):
        """400 open slides once kept up to 384 MiB each."""
        cache = self.cache(2)
        for owner in range(3):
            for key in "ab":
                cache.give_back([self.borrow(cache, key, owner)])
                assert cache.kept_bytes <= 240
        with cache.lock:
            assert cache.borrow(2, [("b", self.SHAPE, 2)])[0].users == 1  # the latest are kept

    def test_a_closed_slide_keeps_nothing(self):
        cache = self.cache(4)
        for owner in range(2):
            cache.give_back([self.borrow(cache, "a", owner)])
        cache.forget(0, closed=True)
        assert cache.kept_bytes == 120


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
