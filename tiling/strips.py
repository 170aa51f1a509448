"""Neighbouring patches of a row, read together: one strip of pixels, of which each patch is a view.

Where patches overlap, a strip holds each pixel once: at half a patch's stride it has half the bytes
of its patches.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CHANNELS = 3


@dataclass(frozen=True)
class Strip:
    """A rectangle of a level as high as a patch."""

    start: int  # first of its patches
    stop: int  # after the last one
    corner: tuple[int, int]  # (x, y), px of the level
    width: int  # px
    first: int  # byte of its first pixel in the memory of all strips

    def view(self, memory: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
        """Return the strip's part of the memory: (side, width, 3)."""
        n_bytes = side * self.width * CHANNELS
        return memory[self.first : self.first + n_bytes].reshape(side, self.width, CHANNELS)


@dataclass(frozen=True)
class StripPlan:
    """Where each of n patches lies in the memory of their strips."""

    strips: tuple[Strip, ...]
    first: NDArray[np.int64]  # (n,) byte of a patch's first pixel
    pitch: NDArray[np.int64]  # (n,) bytes from a row of pixels to the next
    n_bytes: int


def plan_strips(corners: NDArray[np.int64], side: int) -> StripPlan:
    """Join patches that follow each other in a row and touch or overlap.

    Parameters
    ----------
    corners : (n, 2)
        Top-left corners (x, y), px of the level that is read.
    side : int
        Of a patch, px.
    """
    steps = np.diff(corners, axis=0)
    joined = (steps[:, 1] == 0) & (steps[:, 0] > 0) & (steps[:, 0] <= side)
    starts = np.flatnonzero(np.concatenate([[True], ~joined])) if len(corners) else np.empty(0, int)
    stops = np.append(starts[1:], len(corners))
    strips: list[Strip] = []
    first = np.empty(len(corners), np.int64)
    pitch = np.empty(len(corners), np.int64)
    n_bytes = 0
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        x, y = corners[start].tolist()
        width = int(corners[stop - 1, 0]) + side - x
        strips.append(Strip(start, stop, (x, y), width, n_bytes))
        first[start:stop] = n_bytes + (corners[start:stop, 0] - x) * CHANNELS
        pitch[start:stop] = width * CHANNELS
        n_bytes += side * width * CHANNELS
    return StripPlan(tuple(strips), first, pitch, n_bytes)
