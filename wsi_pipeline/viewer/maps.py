"""Values of heatmaps by tile, read from their OME-TIFFs."""

from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from wsi_pipeline.contracts import Heatmap
from wsi_pipeline.errors import HeatmapError
from wsi_pipeline.heatmaps.files import read_heatmap

TILE_PX = 256


def stamp_of(path: Path) -> tuple[int, int]:
    """Size and time of a heatmap's file, by which it is known whether it was replaced.

    Raises
    ------
    HeatmapError
        If there is none.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise HeatmapError(
            f"{path.name}: no such heatmap; make it with wsi-pipeline heatmap"
        ) from error
    return found.st_size, found.st_mtime_ns


def read_levels(path: Path) -> tuple[Heatmap, list[NDArray[np.float32]]]:
    """Read a heatmap and the levels of its file.

    Raises
    ------
    HeatmapError
        If it is missing, or damaged.
    """
    heatmap = read_heatmap(path)
    try:
        with tifffile.TiffFile(path) as tiff:
            levels = [page.asarray() for page in tiff.pages.first.pages or ()]
    except (tifffile.TiffFileError, ValueError, RuntimeError) as error:
        raise HeatmapError(f"{path.name}: damaged ({error}); rebuild it") from error
    return heatmap, [heatmap.values, *levels]


def cut_tile(level: NDArray[np.float32], column: int, row: int) -> bytes:
    """Cut one tile: TILE_PX squared little-endian float32 in rows, NaN where nothing was scored."""
    tile = np.full((TILE_PX, TILE_PX), np.nan, "<f4")
    part = level[row * TILE_PX : (row + 1) * TILE_PX, column * TILE_PX : (column + 1) * TILE_PX]
    tile[: part.shape[0], : part.shape[1]] = part
    return tile.tobytes()


def value_at(heatmap: Heatmap, x: float, y: float) -> float | None:
    """Value of a heatmap at a level-0 position; None where nothing was scored.

    Examples
    --------
    >>> one = Heatmap(np.array([[0.25, np.nan]], np.float32), (10, 20), (20, 20))
    >>> value_at(one, 9.9, 19), value_at(one, 10, 0), value_at(one, -1, 0)
    (0.25, None, None)
    """
    column, row = int(x // heatmap.pixel_l0[0]), int(y // heatmap.pixel_l0[1])
    height, width = heatmap.values.shape
    if not (0 <= column < width and 0 <= row < height):
        return None
    value = float(heatmap.values[row, column])
    return None if np.isnan(value) else value
