"""The whole slide as one small picture, and which of it cannot be decoded."""

import logging
from dataclasses import dataclass
from itertools import product
from typing import cast

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import Slide
from tiling.errors import SlideError
from tiling.resample import Average, nearest_finer_level, read_resampled
from tiling.threads import map_in_threads

log = logging.getLogger(__name__)

OVERVIEW_BLOCK_PX = 1024  # side of what is read at once, px of the level read; larger is slower
SMALLEST_UNREADABLE_PX = 16  # overview px: a bad spot is narrowed down to this
PROBES = 4  # along x and y, in a block that cannot be read


@dataclass(frozen=True)
class Overview:
    """The whole slide as one small picture."""

    rgb: NDArray[np.uint8]  # (H, W, 3)
    pixel_l0: tuple[float, float]  # (x, y) level-0 px per px of the picture
    unreadable: NDArray[np.bool_]  # (H, W) True where the file could not be decoded: white in `rgb`


def read_thumbnail(
    slide: Slide, *, mpp: tuple[float, float], target_mpp: float
) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """Read the whole slide as a picture of about `target_mpp`.

    Parameters
    ----------
    mpp : (x, y), µm per level-0 px
    target_mpp : µm per px of the thumbnail
        Of a coarser slide the finest level is given.

    Returns
    -------
    thumbnail : (H, W, 3) uint8
        What cannot be decoded is white.
    pixel_l0 : (x, y), level-0 px per px of the thumbnail
        Exact: the thumbnail covers the slide from edge to edge.
    """
    overview = read_overview(slide, mpp=mpp, target_mpp=target_mpp)
    return overview.rgb, overview.pixel_l0


def read_overview(
    slide: Slide, *, mpp: tuple[float, float], target_mpp: float, threads: int = 1
) -> Overview:
    """Read the thumbnail as `read_thumbnail` does, and mark which of its pixels are unknown."""
    width, height = slide.size
    out_width = min(width, max(1, round(width * mpp[0] / target_mpp)))
    out_height = min(height, max(1, round(height * mpp[1] / target_mpp)))
    pixel_l0 = (width / out_width, height / out_height)
    overview = Overview(
        rgb=np.full((out_height, out_width, 3), 255, np.uint8),
        pixel_l0=pixel_l0,
        unreadable=np.zeros((out_height, out_width), np.bool_),
    )
    level = nearest_finer_level(slide.level_downsamples, pixel_l0)
    side = max(1, int(OVERVIEW_BLOCK_PX * slide.level_downsamples[level] / max(pixel_l0)))
    blocks = [
        (x, y, min(x + side, out_width), min(y + side, out_height))
        for y, x in product(range(0, out_height, side), range(0, out_width, side))
    ]

    def fill(block: tuple[int, int, int, int]) -> None:
        _fill_block(slide, overview, block, level)

    for _ in map_in_threads(fill, blocks, threads=threads):
        pass
    return overview


def _fill_block(
    slide: Slide, overview: Overview, block: tuple[int, int, int, int], level: int
) -> None:
    """Read one block of the overview; quarter it where it fails, down to the spot that is bad."""
    x0, y0, x1, y1 = block
    pixel_x, pixel_y = overview.pixel_l0
    try:
        overview.rgb[y0:y1, x0:x1] = read_part(
            slide,
            (x0 * pixel_x, y0 * pixel_y),
            extent_l0=((x1 - x0) * pixel_x, (y1 - y0) * pixel_y),
            out_px=(x1 - x0, y1 - y0),
            level=level,
        )
    except SlideError as error:
        small = max(x1 - x0, y1 - y0) <= SMALLEST_UNREADABLE_PX
        if small or not _is_readable_somewhere(slide, overview, block, level):
            log.debug("overview: %s", error)
            overview.unreadable[y0:y1, x0:x1] = True
            return
        for part in _quarter(block):
            _fill_block(slide, overview, part, level)


def _is_readable_somewhere(
    slide: Slide, overview: Overview, block: tuple[int, int, int, int], level: int
) -> bool:
    """Try a few pixels of a block that cannot be read: what is bad all over is not narrowed down.

    A failed read is slow, as the slide is opened anew.
    """
    x0, y0, x1, y1 = block
    for row, column in product(range(PROBES), range(PROBES)):
        x = x0 + (x1 - x0) * (column + 0.5) / PROBES
        y = y0 + (y1 - y0) * (row + 0.5) / PROBES
        at = (int(x * overview.pixel_l0[0]), int(y * overview.pixel_l0[1]))
        try:
            slide.read_region(at, level, (1, 1))
        except SlideError:
            continue
        return True
    return False


class _StoredLevel:
    """One stored level as a slide of its own, level-0 px being that level's."""

    level_downsamples = (1.0,)

    def __init__(self, slide: Slide, level: int) -> None:
        self._slide, self._level = slide, level

    def read_region(
        self, location: tuple[int, int], level: int, size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        return self._slide.read_level(location, self._level, size)


def read_part(
    slide: Slide,
    location: tuple[float, float],
    *,
    extent_l0: tuple[float, float],
    out_px: tuple[int, int],
    level: int,
    average: Average | None = None,
) -> NDArray[np.uint8]:
    """Read as `read_resampled` does, from the level's own pixels where the reader gives them.

    A level of 16.0005 has hardly a pixel that starts on a whole level-0 pixel, so that OpenSlide
    interpolates all of it: slow, and less sharp than what is stored.
    """
    downsample = slide.level_downsamples[level]
    if not downsample.is_integer():
        try:
            return read_resampled(
                cast("Slide", _StoredLevel(slide, level)),
                (location[0] / downsample, location[1] / downsample),
                extent_l0=(extent_l0[0] / downsample, extent_l0[1] / downsample),
                out_px=out_px,
                level=0,
                average=average,
            )
        except SlideError as error:
            log.debug("%s", error)
    return read_resampled(
        slide, location, extent_l0=extent_l0, out_px=out_px, level=level, average=average
    )


def _quarter(block: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
    x0, y0, x1, y1 = block
    middle_x, middle_y = (x0 + x1 + 1) // 2, (y0 + y1 + 1) // 2
    parts = [
        (left, top, right, bottom)
        for top, bottom in ((y0, middle_y), (middle_y, y1))
        for left, right in ((x0, middle_x), (middle_x, x1))
    ]
    return [part for part in parts if part[0] < part[2] and part[1] < part[3]]
