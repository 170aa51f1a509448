"""Files with one damaged tag or byte: OpenSlide's pixels or an error, never others, no crash."""

import itertools
import random
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from tests.helpers import slides
from tiling.errors import SlideError
from tiling.readers.openslide_reader import OpenSlideReader
from tiling.slide import open_slide

LEVELS = [slides.tissue(643, 517), slides.tissue(160, 129, seed=1)]
KINDS = {
    "svs": (slides.write_svs, {"compression": "jpeg", "photometric": "ycbcr"}),
    "svs-jp2k": (slides.write_svs, {"compression": tifffile.COMPRESSION.APERIO_JP2000_RGB}),
    "tif": (slides.write_slide, {"compression": "lzw", "predictor": True}),
}
VALUES = [0, 1, 2, 3, 5, 8, 16, 64, 255, 256, 65_535, 2**31 - 1, 2**31, 2**32 - 1]
BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 12: 8, 16: 8}  # of a value, by TIFF's data types
PLACES = ((0, 0), (270, 210), (560, 440))
DAMAGES = 60


def damage(data: bytes, tags: list[tuple[int, int, int]], rng: random.Random) -> bytes:
    """Change one value of a tag, one byte anywhere, or cut the file off."""
    damaged = bytearray(data)
    kind = rng.random()
    if kind < 0.7:
        offset, count, data_type = rng.choice(tags)
        size = BYTES.get(data_type, 1)
        place = offset + size * rng.randrange(min(count, 50))
        damaged[place : place + size] = (rng.choice(VALUES) % 256**size).to_bytes(size, "little")
    elif kind < 0.85:
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    else:
        del damaged[rng.randrange(len(damaged)) :]
    return bytes(damaged)


def expected_of(path: Path, level: int, place: tuple[int, int]) -> np.ndarray | None:
    """OpenSlide's pixels by a handle of its own; None where it fails."""
    try:
        with OpenSlideReader(path) as slide:
            return slide.read_region(place, level, (90, 80))
    except (SlideError, openslide.OpenSlideError):
        return None


def check(path: Path) -> str:
    """Hold every level of a damaged file to OpenSlide."""
    try:
        slide = open_slide(path)
    except SlideError as error:
        refusal = str(error)
    else:
        with slide:
            for level, place in itertools.product(range(len(slide.level_sizes)), PLACES):
                expected = expected_of(path, level, place)
                if expected is not None:  # one level more or less between pixels is rounding
                    region = slide.read_region(place, level, (90, 80)).astype(int)
                    assert np.abs(region - expected).max() <= 1, (level, place)
        return "read"
    assert refusal.startswith(f"{path.name}: ")
    assert expected_of(path, 0, (0, 0)) is None, refusal
    return "refused"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_read_as_openslide_does_or_refused(kind: str, tmp_path: Path):
    write, options = KINDS[kind]
    whole = write(tmp_path / "whole.tif", LEVELS, **options)
    with tifffile.TiffFile(whole) as tif:
        tags = [
            (tag.valueoffset, tag.count, int(tag.dtype)) for page in tif.pages for tag in page.tags
        ]
    path, data = tmp_path / "a.tif", whole.read_bytes()
    outcomes = []
    for seed in range(DAMAGES):
        path.write_bytes(damage(data, tags, random.Random(seed)))
        outcomes.append(check(path))
    assert {"read", "refused"} == set(outcomes)
