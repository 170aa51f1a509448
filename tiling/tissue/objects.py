"""Connected objects of a mask, held as runs of pixels: memory for their outlines only.

Numbering every pixel of a large mask takes four times its memory, and importing scipy, which does
it, longer than the work on most slides.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tiling.components import connect
from tiling.tissue.colour import bands

PAINTED_PX = 2**20  # at a time


@dataclass(frozen=True)
class Objects:
    """The 4-connected objects of a mask, as horizontal runs of pixels, row by row."""

    row: NDArray[np.int64]  # (n_runs,)
    start: NDArray[np.int64]  # (n_runs,) first column
    stop: NDArray[np.int64]  # (n_runs,) column behind the last
    number: NDArray[np.int64]  # (n_runs,) of the object, from 0
    n_px: NDArray[np.int64]  # (n_objects,)
    shape: tuple[int, int]  # of the mask

    def at_border(self) -> NDArray[np.bool_]:
        """Find the objects that reach the edge of the picture; (n_objects,)."""
        height, width = self.shape
        at_edge = (self.row == 0) | (self.row == height - 1)
        at_edge |= (self.start == 0) | (self.stop == width)
        return self.holding(np.flatnonzero(at_edge))

    def holding(self, runs: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Find the objects that hold some of these runs; (n_objects,)."""
        found = np.zeros(len(self.n_px), np.bool_)
        found[self.number[runs]] = True
        return found

    def runs_at(self, row: NDArray[np.int64], column: NDArray[np.int64]) -> NDArray[np.int64]:
        """Find the runs that hold some pixels of the objects; (n_pixels,)."""
        stride = self.shape[1] + 1
        at = np.searchsorted(self.row * stride + self.start, row * stride + column, "right")
        return at - 1

    def paint(self, mask: NDArray[np.bool_], chosen: NDArray[np.bool_], value: bool) -> None:
        """Set the pixels of chosen objects in a mask; `chosen` is (n_objects,)."""
        pixels = mask.reshape(-1)
        runs = np.flatnonzero(chosen[self.number])
        length = self.stop[runs] - self.start[runs]
        first = self.row[runs] * self.shape[1] + self.start[runs]
        for part in _parts(length):
            ends = np.cumsum(length[part])
            offset = np.repeat(first[part] - (ends - length[part]), length[part])
            pixels[offset + np.arange(len(offset))] = value


def _parts(length: NDArray[np.int64]) -> Iterator[slice]:
    """Divide runs into parts of about `PAINTED_PX`."""
    ends = np.cumsum(length)
    first = 0
    while first < len(length):
        before = ends[first] - length[first]
        last = max(first + 1, int(np.searchsorted(ends, before + PAINTED_PX, "right")))
        yield slice(first, last)
        first = last


def find_objects(mask: NDArray[np.bool_], *, value: bool = True) -> Objects:
    """Find the 4-connected objects of the pixels that have a value.

    Parameters
    ----------
    mask : (H, W) bool
    value : bool
        False: the objects of the background, holes among them.
    """
    found = [find_runs(mask[rows], value, first_row=rows.start) for rows in bands(mask.shape)]
    none: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    row, start, stop = (np.concatenate(none + list(part)) for part in zip(*found, strict=True))
    links = _touching(row, start, stop, stride=mask.shape[1] + 1)
    roots, number = np.unique(connect(len(row), *links), return_inverse=True)
    n_px = np.bincount(number, weights=stop - start, minlength=len(roots)).astype(np.int64)
    height, width = mask.shape
    return Objects(row, start, stop, number.astype(np.int64), n_px, (height, width))


def find_runs(
    mask: NDArray[np.bool_], value: bool = True, *, first_row: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Find runs of pixels that have a value: their row, first column, and column behind the last.

    Parameters
    ----------
    mask : (H, W) bool
    first_row : int
        Number of the first row.
    """
    height, width = mask.shape
    changes = np.empty((height, width + 1), np.bool_)
    changes[:, 0], changes[:, -1] = mask[:, 0] == value, mask[:, -1] == value
    np.not_equal(mask[:, 1:], mask[:, :-1], out=changes[:, 1:-1])
    row, column = np.divmod(np.flatnonzero(changes), width + 1)  # start, stop, start, stop, ...
    return row[::2] + first_row, column[::2], column[1::2]


def _touching(
    row: NDArray[np.int64], start: NDArray[np.int64], stop: NDArray[np.int64], *, stride: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """List the pairs of runs in adjacent rows that share a column."""
    below = (row + 1) * stride
    first = np.searchsorted(row * stride + stop, below + start, "right")
    last = np.searchsorted(row * stride + start, below + stop, "left")
    count = last - first
    upper = np.repeat(np.arange(len(row)), count)
    lower = np.arange(len(upper)) + np.repeat(first - (np.cumsum(count) - count), count)
    return upper, lower
