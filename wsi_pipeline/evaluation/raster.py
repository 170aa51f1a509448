"""Polygons as pixels of a coarse grid, straight from their edges.

A pixel belongs to a polygon iff its centre does; a centre exactly on an edge belongs to one side
only (left and upper edges are in, right and lower ones out), so polygons that share an edge share
no pixel. Nothing finer than the grid is ever made, so a slide of any size costs what its polygons
cover on the grid.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray


@dataclass(frozen=True)
class Box:
    """A rectangle of grid pixels, half-open."""

    row: int
    col: int
    height: int
    width: int


def rasterise(polygons: NDArray[Any], *, box: Box, downsample: float) -> NDArray[np.bool_]:
    """Draw polygons on a part of the grid.

    Parameters
    ----------
    polygons : (n,) shapely Polygons, level-0 px
        Valid, with disjoint interiors; holes are cut out. A polygon that covers no pixel's centre
        gets the one pixel that a point inside it falls on: a small lesion is never lost.
    box : Box
        The part of the grid to draw.
    downsample : level-0 px per grid pixel

    Returns
    -------
    inside : (box.height, box.width) bool

    Examples
    --------
    >>> square = np.array([shapely.box(32, 0, 96, 32)])
    >>> rasterise(square, box=Box(0, 0, 2, 4), downsample=32).astype(int).tolist()
    [[0, 1, 1, 0], [0, 0, 0, 0]]
    """
    owner, row, col = _crossings(polygons, box=box, downsample=downsample)
    # Every crossing to the left of a pixel's centre flips it: odd is inside.
    flips = np.zeros(box.height * (box.width + 1), dtype=np.uint8)
    np.add.at(flips, row * (box.width + 1) + np.clip(col, 0, box.width), 1)
    flips &= 1
    by_row = flips.reshape(box.height, box.width + 1)
    inside = np.bitwise_xor.accumulate(by_row, axis=1)[:, : box.width].astype(bool)
    _mark_uncovered(inside, polygons, owner, row, col, box=box, downsample=downsample)
    return inside


def _crossings(
    polygons: NDArray[Any], *, box: Box, downsample: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """List where edges cross the rows' centre lines.

    Returns
    -------
    owner, row, col : (n_crossings,) int64
        Index of the polygon; row of the box; first column whose centre is not left of the crossing
        (may lie outside the box).
    """
    rings, owner_of_ring = shapely.get_rings(polygons, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    # Pixel centres come to lie on whole numbers.
    x = points[:, 0] / downsample - (box.col + 0.5)
    y = points[:, 1] / downsample - (box.row + 0.5)
    start = np.flatnonzero(ring[1:] == ring[:-1])
    # From the upper end to the lower, so that two polygons cut a shared edge at the same place.
    upper = np.where(y[start] <= y[start + 1], start, start + 1)
    lower = np.where(y[start] <= y[start + 1], start + 1, start)
    first = np.clip(np.ceil(y[upper]), 0, box.height).astype(np.int64)
    stop = np.clip(np.ceil(y[lower]), 0, box.height).astype(np.int64)
    n_rows = stop - first
    edge = np.repeat(np.arange(start.size), n_rows)
    offset = np.arange(edge.size) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)
    row = first[edge] + offset
    a, b = upper[edge], lower[edge]
    crossing = x[a] + (row - y[a]) * ((x[b] - x[a]) / (y[b] - y[a]))
    return owner_of_ring[ring[a]], row, np.ceil(crossing).astype(np.int64)


def _mark_uncovered(
    inside: NDArray[np.bool_],
    polygons: NDArray[Any],
    owner: NDArray[np.int64],
    row: NDArray[np.int64],
    col: NDArray[np.int64],
    *,
    box: Box,
    downsample: float,
) -> None:
    # Sorted by polygon, row and column, crossings pair up: into the polygon, out of it.
    order = np.lexsort((col, row, owner))
    enter, leave = order[0::2], order[1::2]
    covered = np.zeros(len(polygons), dtype=bool)
    covered[owner[enter[col[leave] > col[enter]]]] = True
    if covered.all():
        return
    points = shapely.point_on_surface(polygons[~covered])
    rows = np.floor(shapely.get_y(points) / downsample).astype(np.int64) - box.row
    cols = np.floor(shapely.get_x(points) / downsample).astype(np.int64) - box.col
    seen = (rows >= 0) & (rows < box.height) & (cols >= 0) & (cols < box.width)
    inside[rows[seen], cols[seen]] = True
