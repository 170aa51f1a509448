"""Slides are opened when they are read, and those read longest ago are closed."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import slides
from tiling import open_slides
from tiling.errors import SlideError
from tiling.open_slides import ReopenedSlide
from tiling.readers.memory import CACHE_VARIABLE, cache_budget, most_open_slides
from tiling.slide import open_slide


@pytest.fixture
def three_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_slides, "_recent", open_slides._Recent())
    monkeypatch.setattr(open_slides, "most_open_slides", lambda: 3)


class Opened:
    """Counts which slides are open."""

    def __init__(self, path: Path) -> None:
        self.path, self.names, self.n_opened = path, set(), 0
        self.made = []

    def slide(self, name: int) -> ReopenedSlide:
        def open_again():
            slide = open_slide(self.path)
            close = slide.close

            def note_close():
                self.names.discard(name)
                close()

            slide.close = note_close
            self.names.add(name)
            self.n_opened += 1
            return slide

        self.made.append(ReopenedSlide(open_again))
        return self.made[-1]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    opened = Opened(slides.write_slide(tmp_path / "a.tif", [slides.tissue(130, 120)]))
    yield opened
    for slide in opened.made:
        slide.rest()


@pytest.mark.usefixtures("three_open")
class TestReopenedSlide:
    def read(self, slide: ReopenedSlide):
        with slide.reading() as one:
            return one.read_region((5, 5), 0, (20, 20))

    def test_those_read_longest_ago_are_closed_and_opened_again(self, opened: Opened):
        made = [opened.slide(name) for name in range(5)]
        for name in (0, 1, 2, 0, 3):
            self.read(made[name])
        assert opened.names == {0, 2, 3}
        self.read(made[1])
        assert opened.names == {0, 1, 3}
        assert opened.n_opened == 5

    def test_a_slide_that_is_read_stays_open(self, opened: Opened):
        made = [opened.slide(name) for name in range(6)]
        with made[0].reading() as one:
            for other in made[1:]:
                self.read(other)
            assert 0 in opened.names
            one.read_region((5, 5), 0, (20, 20))
        assert len(opened.names) <= 4

    def test_threads_get_the_right_pixels(self, opened: Opened):
        made = [opened.slide(name) for name in range(8)]
        expected = self.read(made[0])
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda i: self.read(made[i % 8]), range(200)):
                np.testing.assert_array_equal(found, expected)
        assert len(opened.names) <= 3

    def test_one_that_cannot_be_opened_is_tried_again(self, opened: Opened):
        slide, moved = opened.slide(0), opened.path.with_name("moved.tif")
        opened.path.rename(moved)
        with pytest.raises(SlideError, match=r"a\.tif"):
            self.read(slide)
        moved.rename(opened.path)
        self.read(slide)


class TestBudget:
    def test_is_what_the_environment_says(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv(CACHE_VARIABLE, "300")
        assert cache_budget() == 300 * 2**20

    @pytest.mark.parametrize("value", ["0", "-3", "many", "nan"])
    def test_what_is_no_size_is_refused(self, monkeypatch: pytest.MonkeyPatch, value: str):
        monkeypatch.setenv(CACHE_VARIABLE, value)
        with pytest.raises(
            SlideError, match=f"{CACHE_VARIABLE} must be a positive number.*{value}"
        ):
            cache_budget()

    def test_is_bounded_by_default(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delenv(CACHE_VARIABLE, raising=False)
        assert 192 * 2**20 <= cache_budget() <= 2**30

    def test_files_are_left_for_others(self):
        import resource

        assert 8 <= most_open_slides() < resource.getrlimit(resource.RLIMIT_NOFILE)[0]
