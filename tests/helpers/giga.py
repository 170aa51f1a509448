"""Slides of any size in a few megabytes: a BigTIFF whose tiles all point to a few byte ranges."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tests.helpers.slides import Pixels

SHORT, LONG, RATIONAL, LONG8 = 3, 4, 5, 16
BYTES_BY_TYPE = {SHORT: 2, LONG: 4, RATIONAL: 8, LONG8: 8}
FORMAT_BY_TYPE = {SHORT: "H", LONG: "I", RATIONAL: "II", LONG8: "Q"}
FULL_SIZE = (105_185, 221_772)  # the largest slide of CAMELYON16, level-0 px

Where = Callable[[np.ndarray, np.ndarray], np.ndarray]  # level-0 x, y -> is it tissue


def glass_and_tissue(side: int) -> list[Pixels]:
    """One tile of glass, one of speckled pink; (side, side, 3) each."""
    rng = np.random.default_rng(0)
    speckle = np.kron(rng.integers(-30, 31, (side // 8, side // 8, 1)), np.ones((8, 8, 1)))
    pink = np.clip(np.array([200, 110, 160]) + speckle, 0, 255).astype(np.uint8)
    return [np.full((side, side, 3), 244, np.uint8), pink]


def write_giga(
    path: Path,
    size: tuple[int, int],
    *,
    is_tissue: Where,
    tile: int = 512,
    n_levels: int = 5,
    mpp: float = 0.25,
) -> Path:
    """Write a pyramid (downsamples 1, 4, 16, ...) of glass and tissue tiles, each stored once.

    Parameters
    ----------
    size : (width, height), level-0 px
    is_tissue : function
        Takes level-0 x and y of the centres of file tiles, broadcast against each other.
    tile : side of a file tile, px of any level; a multiple of 16
    """
    with path.open("wb") as file:
        link = begin_file(file)
        places = []
        for pixels in glass_and_tissue(tile):
            data = zlib.compress(pixels.tobytes())
            places.append((file.tell(), len(data)))
            file.write(data)
        for level in range(n_levels):
            downsample = 4**level
            x, y = (
                (np.arange(-(-(side // downsample) // tile)) + 0.5) * tile * downsample
                for side in size
            )
            kind = np.broadcast_to(is_tissue(x[None, :], y[:, None]), (len(y), len(x))).astype(int)
            stored = np.array(places)[kind.ravel()]
            link = write_level(file, link, downsample, size, tile, stored, mpp)
    return path


def begin_file(file: BinaryIO) -> int:
    """Write the head of a BigTIFF; return where the place of the first directory goes."""
    file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
    return 8


def write_level(
    file: BinaryIO,
    link: int,
    downsample: int,
    size: tuple[int, int],
    tile: int,
    places: np.ndarray,
    mpp: float,
    *,
    is_jpeg: bool = False,
) -> int:
    """Write the directory of a level whose tiles are at `places`, (n_tiles, 2): offset, bytes.

    Tiles are deflated RGB, or JPEG with 4:2:0 chroma. Returns where the place of the next directory
    goes.
    """
    width, height = (side // downsample for side in size)
    per_cm = (round(10_000 / mpp / downsample * 1000), 1000)
    tags = [
        (254, LONG, [int(downsample > 1)]),
        (256, LONG, [width]),
        (257, LONG, [height]),
        (258, SHORT, [8, 8, 8]),
        (259, SHORT, [7 if is_jpeg else 8]),  # JPEG, deflate
        (262, SHORT, [6 if is_jpeg else 2]),  # YCbCr, RGB
        (277, SHORT, [3]),
        (282, RATIONAL, per_cm),
        (283, RATIONAL, per_cm),
        (284, SHORT, [1]),
        (296, SHORT, [3]),  # centimetre
        (322, LONG, [tile]),
        (323, LONG, [tile]),
        (324, LONG8, places[:, 0].tolist()),
        (325, LONG, places[:, 1].tolist()),
        *([(530, SHORT, [2, 2])] if is_jpeg else []),
    ]
    return _write_directory(file, link, tags)


def _write_directory(file, link, tags):
    entries = []
    for tag, kind, values in tags:
        data = struct.pack(f"<{len(values) * FORMAT_BY_TYPE[kind][:1]}", *values)
        if len(data) > 8:
            file.write(b"\0" * (-file.tell() % 8))
            place = struct.pack("<Q", file.tell())
            file.write(data)
        else:
            place = data.ljust(8, b"\0")
        entries.append(struct.pack("<HHQ", tag, kind, len(data) // BYTES_BY_TYPE[kind]) + place)
    file.write(b"\0" * (-file.tell() % 8))
    start = file.tell()
    file.write(struct.pack("<Q", len(entries)) + b"".join(entries))
    next_link = file.tell()
    file.write(struct.pack("<Q", 0))
    file.seek(link)
    file.write(struct.pack("<Q", start))
    file.seek(0, 2)
    return next_link
