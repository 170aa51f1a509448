"""Whether a TIFF is complete: whether all that its directories point to is inside the file.

Checked for files that could not be opened. A file that was cut off may lose any part of its
directory, and readers then report the default of the missing tag.

References
----------
.. [1] Adobe, "TIFF Revision 6.0", 1992, section 2; BigTIFF as in libtiff.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from tiling.files import open_file

TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # first four bytes, of BigTIFF too
BYTES_BY_TYPE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8,
                 13: 4, 16: 8, 17: 8, 18: 8}  # fmt: skip
STRIP_OFFSETS, STRIP_COUNTS, TILE_OFFSETS, TILE_COUNTS, SUB_IFDS = 273, 279, 324, 325, 330
LISTS = {STRIP_OFFSETS, STRIP_COUNTS, TILE_OFFSETS, TILE_COUNTS, SUB_IFDS}
MOST_DIRECTORIES = 1000  # that are read
MOST_VALUES = 50_000_000  # of one tag


class _CutOffError(Exception):
    """What lies beyond the end of the file."""


@dataclass(frozen=True)
class _Form:
    """Byte order and field widths of one kind of TIFF."""

    order: str  # of `struct`
    is_big: bool

    @property
    def word(self) -> str:  # offsets, counts of values
        return "Q" if self.is_big else "I"

    @property
    def n_entries(self) -> str:
        return "Q" if self.is_big else "H"


def is_tiff(path: Path) -> bool:
    """Whether a file begins as a TIFF does; `OSError` if it cannot be read."""
    with open_file(path, "rb") as file:
        return file.read(4) in TIFF_HEADS


def find_cut(path: Path) -> str | None:
    """Describe what of a TIFF lies beyond the end of its file.

    Parameters
    ----------
    path : Path
        A file that begins as a TIFF does.

    Returns
    -------
    cut : str or None
        For example ``12 of its 30 file tiles lie beyond its end (1,234,567 bytes)``; None where
        nothing does, or the file is no TIFF.
    """
    try:
        with open_file(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            _check(file, size)
    except _CutOffError as cut:
        return f"{cut} ({size:,} bytes)"
    except (OSError, OverflowError, ValueError):
        return None
    return None


def _check(file: IO[bytes], size: int) -> None:
    head = _take(file, 0, 8, size, "its header")
    if head[:2] not in (b"II", b"MM"):
        return
    order = "<" if head[:2] == b"II" else ">"
    form = _Form(order, is_big=struct.unpack(f"{order}H", head[2:4])[0] == 43)
    if form.is_big:
        head = _take(file, 0, 16, size, "its header")
    first = struct.unpack(form.order + form.word, head[8:16] if form.is_big else head[4:8])[0]
    waiting: list[int] = [first]
    seen: set[int] = set()
    while waiting and len(seen) < MOST_DIRECTORIES:
        offset = waiting.pop()
        if offset and offset not in seen:
            seen.add(offset)
            waiting += _check_directory(file, offset, size, form)


def _check_directory(file: IO[bytes], offset: int, size: int, form: _Form) -> list[int]:
    """Check one directory; returns where the next one and those inside it begin."""
    count_bytes = struct.calcsize(form.order + form.n_entries)
    data = _take(file, offset, count_bytes, size, "its TIFF directory")
    n_entries = struct.unpack(form.order + form.n_entries, data)[0]
    entry = 20 if form.is_big else 12
    word = struct.calcsize(form.order + form.word)
    data = _take(
        file, offset + count_bytes, entry * n_entries + word, size, "part of its TIFF directory"
    )
    lists = dict(_read_lists(file, data[: entry * n_entries], size, form))
    for offsets, counts in ((STRIP_OFFSETS, STRIP_COUNTS), (TILE_OFFSETS, TILE_COUNTS)):
        if offsets in lists and counts in lists:
            _check_segments(lists[offsets], lists[counts], size)
    following = struct.unpack(form.order + form.word, data[-word:])[0]
    return [following, *lists.get(SUB_IFDS, np.zeros(0, np.uint64)).tolist()]


def _read_lists(
    file: IO[bytes], entries: bytes, size: int, form: _Form
) -> Iterator[tuple[int, np.ndarray]]:
    """Check that each tag's values lie in the file; yield those that are lists of places."""
    layout = struct.Struct(f"{form.order}HH{form.word}")
    inline = struct.calcsize(form.order + form.word)
    for start in range(0, len(entries), layout.size + inline):
        tag, kind, count = layout.unpack_from(entries, start)
        width = BYTES_BY_TYPE.get(kind, 1)
        values = entries[start + layout.size : start + layout.size + inline]
        if width * count > inline:
            place = struct.unpack(form.order + form.word, values)[0]
            if place + width * count > size:
                raise _CutOffError(f"part of its TIFF directory (tag {tag}) lies beyond its end")
            if tag not in LISTS or count > MOST_VALUES:
                continue
            values = _take(file, place, width * count, size, "part of its TIFF directory")
        if tag in LISTS and width in (2, 4, 8):
            yield tag, np.frombuffer(values[: width * count], f"{form.order}u{width}")


def _check_segments(offsets: np.ndarray, counts: np.ndarray, size: int) -> None:
    n_segments = min(len(offsets), len(counts))
    ends = offsets[:n_segments].astype(np.float64) + counts[:n_segments].astype(np.float64)
    n_beyond = int((ends > size).sum())
    if n_beyond:
        raise _CutOffError(f"{n_beyond} of its {n_segments} file tiles lie beyond its end")


def _take(file: IO[bytes], offset: int, count: int, size: int, what: str) -> bytes:
    if offset + count > size:
        raise _CutOffError(f"{what} lies beyond its end")
    file.seek(offset)
    return file.read(count)
