"""What every reader in `READERS` must do, whatever it reads with; OpenSlide is the oracle."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from tests.helpers import slides
from tiling.contracts import Slide
from tiling.errors import SlideError
from tiling.readers import READERS
from tiling.readers.openslide_reader import OpenSlideReader

LEVELS = [
    slides.noise(643, 517, seed=0),
    slides.noise(321, 258, seed=1),  # odd sizes: a downsample of 2.0035
    slides.noise(160, 129, seed=2),
]
OPTIONS_BY_KIND = {
    "deflate": {},
    "lzw": {"compression": "lzw"},
    "raw": {"compression": None},
    "predictor": {"predictor": True},
    "jpeg": {"compression": "jpeg"},
    "jpeg-ycbcr": {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (2, 2)},
    "bigtiff": {"bigtiff": True},
}


@pytest.fixture(scope="module", params=OPTIONS_BY_KIND)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = OPTIONS_BY_KIND[request.param]
    file = tmp_path_factory.mktemp("contract") / f"{request.param}.tif"
    return slides.write_slide(file, LEVELS, **options)


@pytest.fixture(params=READERS, ids=lambda reader: reader.__name__)
def slide(request: pytest.FixtureRequest, path: Path):
    with request.param(path) as opened:
        yield opened


def read_by_openslide(path: Path, location, level, size):
    """OpenSlide's own pixels, composed on white by plain arithmetic."""
    with openslide.OpenSlide(path) as handle:
        rgba = np.asarray(handle.read_region(location, level, size)).astype(float)
    alpha = rgba[..., 3:] / 255
    return np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


class TestEverySlide:
    def test_describes_itself_as_openslide_does(self, slide: Slide, path: Path):
        with openslide.OpenSlide(path) as oracle:
            assert slide.size == oracle.dimensions
            assert slide.level_sizes == oracle.level_dimensions
            assert slide.level_downsamples == pytest.approx(oracle.level_downsamples, rel=1e-12)
            assert slide.mpp == pytest.approx((0.5, 0.5))
            assert slide.vendor == "generic-tiff"
            assert slide.bounds is None
            assert slide.objective_power is None

    @pytest.mark.parametrize(
        "location",
        [
            (0, 0),
            (1, 3),
            (63, 65),
            (101, 77),
            (600, 500),
            (-7, -11),
            (-100, 20),
            (700, 600),
            (642, 0),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("size", [(1, 1), (50, 33), (200, 130)], ids=str)
    def test_level_0_is_openslide_bit_for_bit(self, slide: Slide, path: Path, location, size):
        region = slide.read_region(location, 0, size)

        assert region.shape == (size[1], size[0], 3)
        assert region.dtype == np.uint8
        np.testing.assert_array_equal(region, read_by_openslide(path, location, 0, size))

    @pytest.mark.parametrize("level", [1, 2])
    @pytest.mark.parametrize("location", [(0, 0), (-3, -5), (-40, 0)], ids=str)
    def test_whole_level_pixels_are_openslide_bit_for_bit(
        self, slide: Slide, path: Path, level, location
    ):
        np.testing.assert_array_equal(
            slide.read_region(location, level, (70, 90)),
            read_by_openslide(path, location, level, (70, 90)),
        )

    @pytest.mark.parametrize("level", [1, 2])
    @pytest.mark.parametrize("location", [(1, 3), (100, 101), (333, 222), (630, 510)], ids=str)
    def test_between_level_pixels_is_openslide_to_within_its_rounding(
        self, slide: Slide, path: Path, level, location
    ):
        region = slide.read_region(location, level, (70, 90)).astype(int)

        # OpenSlide blends in 8-bit steps, and twice where two file tiles meet.
        difference = np.abs(region - read_by_openslide(path, location, level, (70, 90)))
        assert difference.max() <= 4
        assert difference.mean() < 0.75

    def test_outside_is_white(self, slide: Slide):
        assert (slide.read_region((-200, -200), 0, (100, 100)) == 255).all()
        assert (slide.read_region((643, 0), 1, (10, 10))[:, 1:] == 255).all()

    @pytest.mark.parametrize("level", [1, 2])
    def test_a_levels_own_pixels_are_those_stored_or_an_error(self, slide: Slide, path, level):
        try:
            region = slide.read_level((30, 40), level, (90, 60))
        except SlideError as error:
            assert "level-0 positions only" in str(error)  # noqa: PT017  either is right
            return
        with tifffile.TiffFile(path) as tif:
            stored = tif.series[0].levels[level].asarray()[40:100, 30:120]
        off = region.astype(int) - stored
        assert np.abs(off).max() <= (1 if "jpeg" in path.stem else 0)  # another JPEG decoder

    def test_an_empty_region_has_no_pixels(self, slide: Slide):
        assert slide.read_region((5, 5), 0, (0, 7)).shape == (7, 0, 3)

    @pytest.mark.parametrize("level", [-1, 3])
    def test_a_level_that_is_not_there_is_an_error_not_white(self, slide: Slide, level):
        with pytest.raises(SlideError, match=f"no level {level}; the slide has 3"):
            slide.read_region((0, 0), level, (5, 5))

    def test_a_negative_size_is_an_error(self, slide: Slide):
        with pytest.raises(SlideError, match="cannot have the size"):
            slide.read_region((0, 0), 0, (-5, 5))

    def test_threads_read_what_one_reads(self, slide: Slide):
        locations = [(37 * i % 600, 53 * i % 480) for i in range(80)]
        alone = [slide.read_region(location, 0, (90, 90)) for location in locations]

        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda at: slide.read_region(at, 0, (90, 90)), locations))

        np.testing.assert_array_equal(alone, together)

    def test_a_closed_slide_says_so(self, slide: Slide):
        slide.close()

        with pytest.raises(SlideError, match="closed"):
            slide.read_region((600, 500), 0, (5, 5))


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@pytest.mark.parametrize("compression", ["deflate", "jpeg"])
class TestDamagedSpot:
    @pytest.fixture
    def broken(self, tmp_path: Path, compression, reader) -> Path:
        # File tile 13 covers x 128 to 191, y 64 to 127 (11 across).
        file = slides.write_slide(tmp_path / "broken.tif", LEVELS, compression=compression)
        return slides.break_file_tile(file, 13)

    def test_only_that_spot_fails_and_the_slide_stays_usable(self, reader, broken: Path):
        with reader(broken) as slide:
            before = slide.read_region((300, 300), 0, (40, 40))
            with pytest.raises(SlideError, match=r"broken\.tif: .*level 0"):
                slide.read_region((130, 70), 0, (40, 40))

            np.testing.assert_array_equal(slide.read_region((300, 300), 0, (40, 40)), before)

    def test_threads_hit_by_another_ones_failure_get_their_pixels(self, reader, broken: Path):
        def read(location):
            try:
                return slide.read_region(location, 0, (30, 30))
            except SlideError:
                return None

        good = [(200 + 10 * i, 300) for i in range(20)]
        mixed = [location for pair in zip(good, [(140, 80)] * 20, strict=True) for location in pair]
        with reader(broken) as slide, ThreadPoolExecutor(6) as pool:
            expected = [slide.read_region(location, 0, (30, 30)) for location in good]
            found = list(pool.map(read, mixed))

        np.testing.assert_array_equal(found[::2], expected)
        assert all(region is None for region in found[1::2])


def test_openslide_is_opened_anew_once_after_a_failure(tmp_path: Path, monkeypatch):
    """Its handle is poisoned by one failed read: without another, each later read would reopen."""
    opened = []
    original = openslide.OpenSlide

    def spy(path):
        opened.append(path)
        return original(path)

    path = slides.break_file_tile(slides.write_slide(tmp_path / "a.tif", LEVELS), 13)
    with OpenSlideReader(path) as slide:
        monkeypatch.setattr(openslide, "OpenSlide", spy)
        with pytest.raises(SlideError):
            slide.read_region((130, 70), 0, (40, 40))
        after_failure = len(opened)
        for x in range(200, 300, 10):
            slide.read_region((x, 300), 0, (40, 40))

    assert after_failure == 2  # one to judge the region, one to go on with
    assert len(opened) == after_failure
