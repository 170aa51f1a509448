"""Pixels at any scale: the nearest finer level, averaged over exact areas.

A pixel of the result is the mean of what lies under it, parts of pixels counting by their share: a
box filter with exact coverage. Chosen over Lanczos and over Pillow's box (whose taps are whole
pixels) because scanners build their own pyramids so: a patch looks the same whether or not the
slide happens to store its resolution. It keeps constants and means, rings nowhere, and looks at
nothing outside the pixel's own footprint, so that patches cut side by side join without a seam.
"""

import functools
import itertools
import math
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import Slide

if TYPE_CHECKING:
    from scipy.sparse import csr_array

FEW_PICTURES = 32  # averaged before scipy.sparse is imported
CACHED_PX = 2**15  # about; averaged at a time

# Odd slide sizes give a level of 4 a downsample of 4.0003: a level this much coarser is accepted.
LEVEL_TOLERANCE = 0.01


def nearest_finer_level(downsamples: tuple[float, ...], scale: tuple[float, float]) -> int:
    """Choose the coarsest level that is not coarser than wanted.

    Parameters
    ----------
    downsamples : (n_levels,)
        Level-0 px per px of each level.
    scale : (x, y)
        Level-0 px per px wanted.

    Returns
    -------
    level : int
        0 where even the finest is coarser.

    Examples
    --------
    >>> nearest_finer_level((1.0, 4.0003, 16.0), (4.0, 4.0))
    1
    """
    limit = min(scale) * (1 + LEVEL_TOLERANCE)
    fitting = [level for level, downsample in enumerate(downsamples) if downsample <= limit]
    return max(fitting, key=lambda level: downsamples[level], default=0)


class Average(Protocol):
    """A way to shrink part of an image, as `average_areas` does."""

    def __call__(
        self,
        image: NDArray[np.uint8],
        *,
        box: tuple[float, float, float, float],
        out_px: tuple[int, int],
    ) -> NDArray[np.uint8]:
        """Return the picture, (height, width, 3) uint8."""


def read_resampled(
    slide: Slide,
    location: tuple[float, float],
    *,
    extent_l0: tuple[float, float],
    out_px: tuple[int, int],
    level: int,
    average: "Average | None" = None,
) -> NDArray[np.uint8]:
    """Read a rectangle of the slide as a picture of a given size.

    Parameters
    ----------
    location : (x, y), level-0 px
        Top-left corner; need not be whole.
    extent_l0 : (width, height), level-0 px
        What the picture covers; need not be whole.
    out_px : (width, height)
        Size of the picture.
    level : int
        The stored level to read from.
    average : function, optional
        Takes the place of `average_areas`.

    Returns
    -------
    picture : (height, width, 3) uint8

    Raises
    ------
    SlideError
        If the slide cannot be read there.
    """
    downsample = slide.level_downsamples[level]
    x, width = _span(location[0], extent_l0[0], downsample)
    y, height = _span(location[1], extent_l0[1], downsample)
    region = slide.read_region((x, y), level, (width, height))
    box = (
        (location[0] - x) / downsample,
        (location[1] - y) / downsample,
        extent_l0[0] / downsample,
        extent_l0[1] / downsample,
    )
    return (average or average_areas)(region, box=box, out_px=out_px)


def _span(start: float, extent: float, downsample: float) -> tuple[int, int]:
    # Begin on a whole level pixel if possible: between them, a reader has to interpolate.
    pixel = math.floor(start / downsample + 1e-6)
    first = min(round(pixel * downsample), math.floor(start))
    count = math.ceil((start + extent - first) / downsample - 1e-6)
    return first, max(count, 1)


def average_areas(
    image: NDArray[np.uint8], *, box: tuple[float, float, float, float], out_px: tuple[int, int]
) -> NDArray[np.uint8]:
    """Shrink a part of an image, each new pixel the mean of the area under it.

    Parameters
    ----------
    image : (H, W, 3) uint8
    box : (x, y, width, height), px of `image`
        The part that the result shows; need not be whole.
    out_px : (width, height)

    Returns
    -------
    picture : (height, width, 3) uint8
    """
    rows, columns, channels = image.shape
    width, height = out_px
    x, y = int(box[0]), int(box[1])
    if box == (float(x), float(y), float(width), float(height)):
        return image[y : y + height, x : x + width].copy()  # each pixel is its own mean
    averaged = next(_n_averaged)
    down = _Mean(rows, box[1], box[3], height, is_one_of_few=averaged < FEW_PICTURES)
    across = _Mean(columns, box[0], box[2], width, is_one_of_few=averaged < FEW_PICTURES)
    # (H, W, 3) -> (height, W, 3) -> (W, height, 3) -> (width, height, 3)
    squeezed = down(image.reshape(rows, columns * channels).astype(np.float32))
    turned = squeezed.reshape(height, columns, channels).transpose(1, 0, 2)
    mean = across(np.ascontiguousarray(turned).reshape(columns, height * channels))
    picture = np.rint(mean, out=mean).reshape(width, height, channels).transpose(1, 0, 2)
    return np.ascontiguousarray(picture, dtype=np.float32).astype(np.uint8)


_n_averaged = itertools.count()


class _Mean:
    """Means along the first axis of (n_source, M) float32; the result is (n_out, M) float32.

    The first few pictures, such as a thumbnail, are averaged by numpy: until they are many,
    importing scipy.sparse takes longer than it saves. Both add in the same order, in float32.
    """

    def __init__(
        self, n_source: int, start: float, extent: float, n_out: int, *, is_one_of_few: bool
    ) -> None:
        self._taps = (n_source, start, extent, n_out)
        self._is_one_of_few = is_one_of_few

    def __call__(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self._is_one_of_few:
            mean: NDArray[np.float32] = _sparse_weights(*self._taps) @ values
            return mean
        taps, shares = _weights(*self._taps)
        n_out, width = len(taps), values.shape[1]
        mean = np.zeros((n_out, width), np.float32)
        step = max(1, CACHED_PX // max(1, width))
        for first in range(0, n_out, step):  # in the processor's cache
            rows = slice(first, first + step)
            for tap, share in zip(taps[rows].T, shares[rows].T, strict=True):
                mean[rows] += values[tap] * share[:, None]
        return mean


def _weights(
    n_source: int, start: float, extent: float, n_out: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the source pixels under each output pixel, and their shares; (n_out, n_taps) each."""
    ratio = extent / n_out
    lower = start + ratio * np.arange(n_out)[:, None]
    upper = lower + ratio
    taps = np.floor(lower).astype(np.int64) + np.arange(math.ceil(ratio) + 1)
    shares = np.clip(np.minimum(upper, taps + 1) - np.maximum(lower, taps), 0, None)
    shares[(taps < 0) | (taps >= n_source)] = 0  # only ever the rounding of a float
    shares /= shares.sum(axis=1, keepdims=True)
    used = shares.any(axis=0)
    return taps[:, used].clip(0, n_source - 1), shares[:, used].astype(np.float32)


@functools.lru_cache(maxsize=256)
def _sparse_weights(n_source: int, start: float, extent: float, n_out: int) -> "csr_array":
    from scipy.sparse import csr_array

    taps, shares = _weights(n_source, start, extent, n_out)
    row, tap = np.nonzero(shares)
    return csr_array((shares[row, tap], (row, taps[row, tap])), shape=(n_out, n_source))
