"""Where tiles sit on a slide.

Pure geometry: nothing here opens a file or reads a pixel. Positions are (x, y) in
level-0 pixels from the top-left corner, the frame OpenSlide's ``read_region`` takes.
"""

from typing import get_args

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import EdgeRule
from tiling.errors import GridError


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
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def _pair(length: int | tuple[int, int]) -> tuple[int, int]:
    return length if isinstance(length, tuple) else (length, length)
