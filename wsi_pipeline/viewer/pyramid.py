"""Tiles of a slide at any zoom, read from the slide's own levels.

Zoom level k shows 2**k x 2**k level-0 px in one px of a tile, whatever the levels of the file are,
so that a position on the screen is a position on the slide: nothing adds up from tile to tile where
a file's level is 2.001 times coarser. Where the file has no level near (a TIFF without a pyramid),
a tile is made of the four below it.
"""

import math

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tiling.contracts import Slide
from tiling.open_slides import ReopenedSlide
from tiling.overview import read_part
from tiling.resample import average_areas, nearest_finer_level
from wsi_pipeline.viewer.memory import Kept

TILE_PX = 256
JPEG_QUALITY = 85
_NEAR = 0.01  # of a ratio to a power of two
_MOST_SHRUNK = 4  # a tile is read from a level at most this much finer, else made of smaller tiles

Pixels = NDArray[np.uint8]


def count_zooms(size: tuple[int, int]) -> int:
    """Count the zoom levels until the whole slide is in one tile.

    Examples
    --------
    >>> count_zooms((256, 100)), count_zooms((257, 100)), count_zooms((100_000, 230_000))
    (1, 2, 11)
    """
    return max(0, math.ceil(math.log2(max(size) / TILE_PX))) + 1


def encode_tile(pixels: Pixels) -> bytes:
    """Encode a tile, (TILE_PX, TILE_PX, 3) uint8, as JPEG."""
    return bytes(imagecodecs.jpeg8_encode(pixels, level=JPEG_QUALITY, subsampling="444"))


class SlidePyramid:
    """Tiles of one slide.

    Parameters
    ----------
    slide : ReopenedSlide
    size : (width, height), level-0 px
    key : str
        Tells this slide's tiles from others' in `kept`.
    kept : Kept
        Pixels of tiles that larger ones are made of.
    """

    def __init__(
        self, slide: ReopenedSlide, size: tuple[int, int], key: str, kept: "Kept[Pixels]"
    ) -> None:
        self._slide = slide
        self._size = size
        self._key = key
        self._kept = kept

    def has(self, zoom: int, column: int, row: int) -> bool:
        """Whether a tile shows any of the slide."""
        side = TILE_PX << zoom if 0 <= zoom < count_zooms(self._size) else 0
        return (
            column >= 0
            and row >= 0
            and column * side < self._size[0] * (side > 0)
            and (row * side < self._size[1])
        )

    def encode(self, zoom: int, column: int, row: int) -> bytes:
        """Return a tile as JPEG, of `TILE_PX` squared; white beside the slide.

        Raises
        ------
        SlideError
            If the slide cannot be read there.
        """
        return encode_tile(self.read(zoom, column, row))

    def read(self, zoom: int, column: int, row: int) -> Pixels:
        """Return a tile, (TILE_PX, TILE_PX, 3) uint8."""
        with self._slide.reading() as slide:
            return self._read(slide, zoom, column, row)

    def _read(self, slide: Slide, zoom: int, column: int, row: int) -> Pixels:
        scale = 1 << zoom
        level = nearest_finer_level(slide.level_downsamples, (scale, scale))
        if scale <= _MOST_SHRUNK * slide.level_downsamples[level]:
            side = TILE_PX * scale
            return read_part(
                slide,
                (column * side, row * side),
                extent_l0=(side, side),
                out_px=(TILE_PX, TILE_PX),
                level=level,
                average=average_quickly,
            )
        return self._kept.get(
            (self._key, zoom, column, row), lambda: self._join(slide, zoom, column, row)
        )

    def _join(self, slide: Slide, zoom: int, column: int, row: int) -> Pixels:
        """Make a tile of the four below it."""
        joined = np.full((2 * TILE_PX, 2 * TILE_PX, 3), 255, np.uint8)
        for down in (0, 1):
            for right in (0, 1):
                part = (zoom - 1, 2 * column + right, 2 * row + down)
                if self.has(*part):
                    rows = slice(down * TILE_PX, (down + 1) * TILE_PX)
                    columns = slice(right * TILE_PX, (right + 1) * TILE_PX)
                    joined[rows, columns] = self._read(slide, *part)
        return halve(joined)


def average_quickly(
    image: Pixels, *, box: tuple[float, float, float, float], out_px: tuple[int, int]
) -> Pixels:
    """Shrink as `average_areas` does, several times as fast where the ratio is near 1, 2 or 4.

    A mean over areas 1 px wide, wherever they lie, is a linear interpolation, and halving it gives
    the mean over 2 px; the results differ from `average_areas` by rounding.
    """
    ratios = box[2] / out_px[0], box[3] / out_px[1]
    times = round(math.log2(ratios[0]))
    if times not in (0, 1, 2) or max(abs(r / 2**times - 1) for r in ratios) > _NEAR:
        return average_areas(image, box=box, out_px=out_px)
    width, height = (side << times for side in out_px)
    x, y = int(box[0]), int(box[1])
    if box == (float(x), float(y), float(width), float(height)):
        picture = image[y : y + height, x : x + width]
    else:
        corners = (box[0], box[1], box[0] + box[2], box[1] + box[3])
        moved = Image.fromarray(image).resize(
            (width, height), Image.Resampling.BILINEAR, box=corners
        )
        picture = np.asarray(moved)
    for _ in range(times):
        picture = halve(picture)
    return np.ascontiguousarray(picture)


def halve(image: Pixels) -> Pixels:
    """Return the means of blocks of 2 x 2 px, rounded as `numpy.rint` does.

    Examples
    --------
    >>> halve(np.array([[[0], [1]], [[2], [3]]], np.uint8)).tolist()
    [[[2]]]
    """
    rows = image[0::2].astype(np.uint16)
    rows += image[1::2]
    height, width, channels = rows.shape
    means = np.empty((height, width // 2, channels), np.uint16)
    for channel in range(channels):
        np.add(rows[:, 0::2, channel], rows[:, 1::2, channel], out=means[:, :, channel])
    means += 1 + ((means >> 2) & 1)
    means >>= 2
    return means.astype(np.uint8)
