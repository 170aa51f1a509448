import io
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tests.helpers.slides import halve, noise, write_slide
from tiling.open_slides import ReopenedSlide
from tiling.resample import average_areas
from tiling.slide import open_slide
from tiling.threads import count_cores
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.viewer.memory import Kept
from wsi_pipeline.viewer.pyramid import TILE_PX, SlidePyramid, average_quickly, count_zooms
from wsi_pipeline.viewer.shown_run import ShownRun


@pytest.fixture
def pyramid_of():
    slides = []

    def make(path):
        slides.append(ReopenedSlide(lambda: open_slide(path)))
        with slides[-1].reading() as slide:
            size = slide.size
        kept = Kept(1 << 26, lambda pixels: pixels.nbytes)
        return SlidePyramid(slides[-1], size, "s", kept), size

    yield make
    for slide in slides:
        slide.rest()


def join(pyramid, size, zoom):
    """The whole slide at a zoom level, from its tiles."""
    side = TILE_PX << zoom
    rows = [
        np.hstack([pyramid.read(zoom, column, row) for column in range(-(-size[0] // side))])
        for row in range(-(-size[1] // side))
    ]
    return np.vstack(rows)[: -(-size[1] // (1 << zoom)), : -(-size[0] // (1 << zoom))]


def test_the_finest_tiles_are_the_slides_own_pixels(tmp_path, pyramid_of):
    pixels = noise(600, 400)
    pyramid, size = pyramid_of(write_slide(tmp_path / "s.tif", [pixels]))
    np.testing.assert_array_equal(join(pyramid, size, 0), pixels)


@pytest.mark.parametrize("n_levels", [1, 2, 4])
def test_coarse_tiles_are_means_whether_or_not_the_file_has_a_level_near(
    tmp_path, pyramid_of, n_levels
):
    pixels = noise(2048, 1024)
    levels = [halve(pixels, times) for times in range(n_levels)]
    pyramid, size = pyramid_of(write_slide(tmp_path / "s.tif", levels))
    for zoom in range(count_zooms(size)):
        found = join(pyramid, size, zoom)[: 1024 >> zoom, : 2048 >> zoom]
        expected = halve(pixels, zoom)
        assert np.abs(found.astype(int) - expected).max() <= 2  # each halving rounds once


def test_tiles_stay_in_place_where_a_level_is_2_001_times_coarser(tmp_path, pyramid_of):
    """Each block of 40 px has a colour of its own, also at the far end of the slide."""
    colours = np.random.default_rng(0).integers(0, 256, (20, 51, 3), dtype=np.uint8)
    pixels = np.repeat(np.repeat(colours, 40, axis=0), 40, axis=1)[:, :2001]
    level = pixels[1::2, (np.arange(1000) * 2.001 + 1).astype(int)]
    pyramid, size = pyramid_of(write_slide(tmp_path / "s.tif", [pixels, level]))
    whole = join(pyramid, size, 1)
    middles = whole[10:400:20, 10:1000:20][:, :50]
    np.testing.assert_array_equal(middles, colours[:, :50])


def test_a_tile_is_white_beside_the_slide(tmp_path, pyramid_of):
    pyramid, _ = pyramid_of(write_slide(tmp_path / "s.tif", [noise(300, 100)]))
    picture = np.asarray(Image.open(io.BytesIO(pyramid.encode(0, 1, 0))))
    assert picture.shape == (TILE_PX, TILE_PX, 3)
    assert (picture[120:, :] == 255).all()
    assert pyramid.has(0, 1, 0)
    assert not any(pyramid.has(*place) for place in ((0, 2, 0), (0, 0, 1), (2, 0, 0), (0, -1, 0)))


@pytest.mark.parametrize("ratio", [1, 0.9999, 2, 2.0002, 4, 3.9998])
@pytest.mark.parametrize("corner", [(0, 0), (3, 5), (0.25, 7.5)])
def test_quick_averages_are_means_of_areas(ratio, corner):
    image = noise(320, 300)
    box = (*corner, 64 * ratio, 48 * ratio)
    found = average_quickly(image, box=box, out_px=(64, 48)).astype(int)
    expected = average_areas(image, box=box, out_px=(64, 48))
    is_whole = all(float(number).is_integer() for number in box)
    most = {1: 0, 2: 0, 4: 1}.get(ratio, 2) if is_whole else 2  # each halving rounds once
    assert np.abs(found - expected).max() <= most


def test_no_more_tiles_are_made_at_once_than_there_are_cores(copy, monkeypatch):
    running, seen = [], []

    def make(self, *place):
        running.append(place)
        seen.append(len(running))
        time.sleep(0.01)
        running.remove(place)
        return b"tile"

    monkeypatch.setattr(SlidePyramid, "encode", make)
    slide = ShownRun(RunFolder(copy / "run")).slide("s5")
    places = [(0, column, row) for column in range(2) for row in range(2)]
    with ThreadPoolExecutor(len(places)) as pool:
        assert set(pool.map(lambda place: slide.tile(*place), places)) == {b"tile"}
    slide.close()
    assert max(seen) <= count_cores()


def test_the_first_slide_is_open_before_it_is_asked_for(copy, monkeypatch):
    shown = ShownRun(RunFolder(copy / "run"))
    shown.open_first()
    monkeypatch.setattr(SlidePyramid, "encode", lambda *place: pytest.fail("made again"))
    assert shown.slide("s0").tile(1, 0, 0)
    shown.close()
    (copy / "data" / "s0.tif").unlink()
    ShownRun(RunFolder(copy / "run")).open_first()  # the page says it


def test_what_is_kept_stays_within_the_budget():
    kept = Kept(100, len)
    made = []

    def make(key):
        made.append(key)
        return b"x" * 40

    for key in (1, 2, 1, 3, 1, 2):
        kept.get(key, lambda key=key: make(key))
        assert kept.bytes <= 100
    assert made == [1, 2, 3, 2]  # 2 was the one unused for longest when 3 came
