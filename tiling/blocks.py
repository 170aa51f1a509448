"""Tiles read together: one region per block of neighbours, cut into the patches under it.

Where tiles overlap, reading them one by one decodes the slide several times (four at half a tile's
stride). A block is read once, and no block reads more pixels than its tiles would alone: a block
with holes is halved until that holds, so that the cost stays that of the tissue.
"""

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import Slide, TileGeometry
from tiling.errors import SlideError
from tiling.resample import nearest_finer_level

BLOCK_PX = 2048  # side of a block, px of the level read; a tile more is read at its edges

# Scanners whose file tiles lie between pixels: OpenSlide interpolates them for every region, and
# a pixel cut out of a larger one might differ from the same pixel read alone.
UNALIGNED_VENDORS = frozenset({"mirax", "ventana"})


def group_tiles(
    coords: NDArray[np.int64], *, tile_l0: tuple[int, int], side_l0: tuple[int, int]
) -> list[NDArray[np.int64]]:
    """Group tiles that are better read together than alone.

    Parameters
    ----------
    coords : (n_tiles, 2), level-0 px
        Top-left corners (x, y).
    tile_l0 : (width, height), level-0 px
    side_l0 : (x, y), level-0 px
        Tiles whose corners lie in the same cell of this grid may become one group.

    Returns
    -------
    groups : list of (n,) int64
        Rows of `coords`; every row in one group, the groups from top to bottom.
    """
    if not len(coords):
        return []
    cell = coords // np.asarray(side_l0)
    order = np.lexsort((coords[:, 0], coords[:, 1], cell[:, 0], cell[:, 1]))
    ends = np.flatnonzero(np.any(np.diff(cell[order], axis=0), axis=1)) + 1
    groups: list[NDArray[np.int64]] = []
    for rows in np.split(order, ends):
        groups += _split(rows, coords, tile_l0)
    return groups


def _split(
    rows: NDArray[np.int64], coords: NDArray[np.int64], tile_l0: tuple[int, int]
) -> list[NDArray[np.int64]]:
    """Halve a group while it reads more pixels than its tiles one by one."""
    corners = coords[rows]
    extent = np.ptp(corners, axis=0)
    width, height = (extent + tile_l0).tolist()
    if width * height <= len(rows) * tile_l0[0] * tile_l0[1]:
        return [rows]
    axis = int(extent[1] >= extent[0])
    middle = corners[:, axis].min() + (int(extent[axis]) + 1) // 2
    first = corners[:, axis] < middle
    return _split(rows[first], coords, tile_l0) + _split(rows[~first], coords, tile_l0)


def block_side(slide: Slide, geometry: TileGeometry) -> tuple[int, int]:
    """Side of a slide's blocks (x, y), level-0 px; at least a tile."""
    level = nearest_finer_level(slide.level_downsamples, geometry.scale)
    side = round(BLOCK_PX * slide.level_downsamples[level])
    return max(side, geometry.patch_l0), max(side, geometry.patch_l0_y)


class BlockSlide:
    """A slide of which one part is in memory; whatever else is asked for comes from the slide.

    Pixels are those the slide itself gives: only regions that lie on whole pixels of the part are
    cut from it.

    Parameters
    ----------
    slide : Slide
    rows : (n,) int
        The tiles to hold, rows of `coords`.
    coords : (n_tiles, 2), level-0 px
    geometry : TileGeometry
    """

    def __init__(
        self,
        slide: Slide,
        rows: NDArray[np.int64],
        *,
        coords: NDArray[np.int64],
        geometry: TileGeometry,
    ) -> None:
        self._slide = slide
        self._level = nearest_finer_level(slide.level_downsamples, geometry.scale)
        self._downsample = slide.level_downsamples[self._level]
        corners = coords[rows]
        x, y = corners.min(axis=0).tolist()
        extent = corners.max(axis=0) - corners.min(axis=0)
        self._origin = (int(x - x % self._downsample), int(y - y % self._downsample))
        tile = (geometry.patch_l0, geometry.patch_l0_y)
        # Two pixels more: what is averaged may begin and end inside a pixel.
        self._size = tuple(
            int(-(-(int(across) + side) // self._downsample)) + 2
            for across, side in zip(extent, tile, strict=True)
        )
        self._pixels = self._read(len(rows))

    def __getattr__(self, name: str) -> object:
        return getattr(self._slide, name)

    def _read(self, n_tiles: int) -> NDArray[np.uint8] | None:
        whole = float(self._downsample).is_integer()
        if n_tiles == 1 or not whole or self._slide.vendor in UNALIGNED_VENDORS:
            return None
        try:
            width, height = self._size
            return self._slide.read_region(self._origin, self._level, (width, height))
        except SlideError:
            return None  # somewhere in it: tile by tile shows where

    def read_region(
        self, location: tuple[int, int], level: int, size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Read pixels as `Slide.read_region` does; the result may be a view."""
        if self._pixels is None or level != self._level:
            return self._slide.read_region(location, level, size)
        x, off_x = divmod(location[0] - self._origin[0], self._downsample)
        y, off_y = divmod(location[1] - self._origin[1], self._downsample)
        left, top, (width, height) = int(x), int(y), size
        fits = left >= 0 and top >= 0
        fits &= left + width <= self._size[0] and top + height <= self._size[1]
        if off_x or off_y or not fits:
            return self._slide.read_region(location, level, size)
        return self._pixels[top : top + height, left : left + width]

    def read_into(self, out: NDArray[np.uint8], location: tuple[int, int], level: int) -> None:
        """Read pixels as `Slide.read_into` does."""
        out[...] = self.read_region(location, level, (out.shape[1], out.shape[0]))
