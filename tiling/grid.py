"""Where tiles sit on a slide.

Pure geometry: nothing here opens a file or reads a pixel. Positions are (x, y) in
level-0 pixels from the top-left corner, the frame OpenSlide's ``read_region`` takes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import EdgeRule
from tiling.errors import GridError


@dataclass(frozen=True)
class TileGrid:
    """A regular grid by its columns and rows; tiles are computed on demand."""

    x: NDArray[np.int64]  # (columns,) left edges, level-0 px
    y: NDArray[np.int64]  # (rows,) upper edges, level-0 px

    def __len__(self) -> int:
        return len(self.x) * len(self.y)

    def iterate(self, *, most: int) -> Iterator[NDArray[np.int64]]:
        """Yield the tiles, (n, 2) each, limited in number unless a single row has more."""
        n_rows = max(1, most // max(1, len(self.x)))
        for first in range(0, len(self.y) if len(self.x) else 0, n_rows):
            yield _lay(self.x, self.y[first : first + n_rows])


def lay_grid(
    slide_size: tuple[int, int],
    *,
    tile_l0: int | tuple[int, int],
    stride_l0: int | tuple[int, int],
    edge: EdgeRule = "drop",
) -> TileGrid:
    """Find the columns and rows of a grid; parameters and errors are those of `tile_coords`."""
    tile, stride = _pair(tile_l0), _pair(stride_l0)
    if min(*tile, *stride) <= 0:
        raise GridError(
            "tile and stride must be at least one level-0 pixel, "
            f"got tile_l0={tile_l0}, stride_l0={stride_l0}"
        )
    if min(slide_size) < 0:
        raise GridError(f"a slide's width and height cannot be negative, got {slide_size}")
    if edge not in get_args(EdgeRule):
        raise GridError(f"edge must be one of {', '.join(get_args(EdgeRule))}, got {edge!r}")
    x, y = (
        np.arange(0, size if edge == "pad" else size - side + 1, step, dtype=np.int64)
        for size, side, step in zip(slide_size, tile, stride, strict=True)
    )
    return TileGrid(x, y)


def tile_coords(
    slide_size: tuple[int, int],
    *,
    tile_l0: int | tuple[int, int],
    stride_l0: int | tuple[int, int],
    edge: EdgeRule = "drop",
) -> NDArray[np.int64]:
    """Place every tile of a regular grid on the slide.

    Parameters
    ----------
    slide_size : (width, height), level-0 px
    tile_l0, stride_l0 : level-0 px
        Side and step; a pair is (along x, along y).
    edge : {"drop", "pad"}
        What becomes of tiles that hang over the right or lower edge: ``drop`` keeps those that fit
        wholly inside, ``pad`` all that start inside.

    Returns
    -------
    coords : (n_tiles, 2) int64, level-0 px
        Top-left corner (x, y) of each tile, row by row. Empty if there is none.

    Raises
    ------
    GridError
        If a side, step or size is not a length, or `edge` is not one of its two words.

    Examples
    --------
    >>> tile_coords((5, 4), tile_l0=2, stride_l0=2).tolist()
    [[0, 0], [2, 0], [0, 2], [2, 2]]
    >>> tile_coords((5, 2), tile_l0=2, stride_l0=2, edge="pad").tolist()
    [[0, 0], [2, 0], [4, 0]]
    """
    grid = lay_grid(slide_size, tile_l0=tile_l0, stride_l0=stride_l0, edge=edge)
    return _lay(grid.x, grid.y)


def _lay(x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def _pair(length: int | tuple[int, int]) -> tuple[int, int]:
    return length if isinstance(length, tuple) else (length, length)
