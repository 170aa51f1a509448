"""A TIFF that was cut off is called cut off, wherever that happened."""

from pathlib import Path

import numpy as np
import pytest

from tests.helpers import slides
from tiling.errors import SlideError
from tiling.readers.tiff_structure import find_cut
from tiling.slide import open_slide

PIXELS = slides.noise(203, 131)
KINDS = {
    "svs": (slides.write_svs, {"compression": "jpeg"}),
    "tiles": (slides.write_slide, {}),
    "strips": (slides.write_slide, {"tile": None}),
    "bigtiff": (slides.write_slide, {"bigtiff": True}),
    "big-endian": (slides.write_slide, {"byteorder": ">"}),
    "ome": (slides.write_ome, {}),
}


def cuts(data: bytes) -> list[int]:
    """Every place in the first header and directory, and many after them."""
    return [*range(16, 420, 9), *range(420, len(data), max(1, len(data) // 25))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_slide_cut_off_anywhere_is_called_cut_off_or_read_right(tmp_path: Path, kind: str):
    """A tag that was lost had its default: one bit per sample, convert the file."""
    write, options = KINDS[kind]
    path = write(tmp_path / "a.tif", [PIXELS, slides.halve(PIXELS)], **options)
    data = path.read_bytes()
    with open_slide(path) as slide:
        expected = slide.read_region((0, 0), 0, slide.size)
    refusals = []
    for length in cuts(data):
        path.write_bytes(data[:length])
        try:
            with open_slide(path) as slide:
                pixels = slide.read_region((0, 0), 0, slide.size)
        except SlideError as error:
            refusals.append(str(error))
        else:
            np.testing.assert_array_equal(pixels, expected)
    assert len(refusals) > 30
    assert [text for text in refusals if "cut off" not in text or "copy it again" not in text] == []


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_missing_of_a_whole_file(tmp_path: Path, kind: str):
    write, options = KINDS[kind]
    path = write(tmp_path / "a.tif", [PIXELS, slides.halve(PIXELS)], **options)
    assert find_cut(path) is None


def test_directories_that_go_round_in_a_ring_end(tmp_path: Path):
    path = slides.write_slide(tmp_path / "a.tif", [PIXELS, slides.halve(PIXELS)])
    data = bytearray(path.read_bytes())
    first = int.from_bytes(data[4:8], "little")
    n_entries = int.from_bytes(data[first : first + 2], "little")
    after = first + 2 + 12 * n_entries
    data[after : after + 4] = first.to_bytes(4, "little")
    path.write_bytes(data)
    assert find_cut(path) is None


def test_what_is_missing_is_counted(tmp_path: Path):
    path = slides.write_slide(tmp_path / "a.tif", [PIXELS], compression=None)
    path.write_bytes(path.read_bytes()[:-1])
    size = path.stat().st_size
    assert find_cut(path) == f"1 of its 12 file tiles lie beyond its end ({size:,} bytes)"


def test_a_file_cut_off_that_can_be_opened_is_noted(tmp_path: Path):
    path = slides.write_slide(tmp_path / "a.tif", [PIXELS], tile=None, rowsperstrip=16)
    path.write_bytes(path.read_bytes()[:-3000])
    with open_slide(path) as slide:
        assert "the file is cut off: " in slide.notes[0]
