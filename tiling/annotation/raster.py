"""Polygons as pixels of a coarse grid, straight from their edges.

A pixel belongs to a polygon iff its centre does; a centre exactly on an edge belongs to one side
only (left and upper edges are in, right and lower ones out), so polygons that share an edge share
no pixel. Nothing finer than the grid is ever made, so a slide of any size costs what its polygons
cover on the grid, whatever lies outside.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from tiling.polygons import polygons_of

CROSSINGS_AT_ONCE = 2**21  # of edges and rows; about 150 MB
MANY_CROSSINGS = 2**20  # a polygon of more covers some pixel's centre


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
    edges = _list_edges(polygons, box=box, downsample=downsample)
    n_of_polygon = np.bincount(edges.owner, weights=edges.n_rows, minlength=len(polygons))
    flips = np.zeros(box.height * (box.width + 1), dtype=np.uint8)
    kept = [(np.empty(0, np.int64),) * 3]
    for owner, row, col in _crossings(edges):
        # Every crossing to the left of a pixel's centre flips it: odd is inside.
        np.add.at(flips, row * (box.width + 1) + np.clip(col, 0, box.width), 1)
        few = n_of_polygon[owner] <= MANY_CROSSINGS
        kept.append((owner[few], row[few], col[few]))
    flips &= 1
    by_row = flips.reshape(box.height, box.width + 1)
    inside = np.bitwise_xor.accumulate(by_row, axis=1)[:, : box.width].astype(bool)
    covered = n_of_polygon > MANY_CROSSINGS
    covered[_find_covered(*(np.concatenate(part) for part in zip(*kept, strict=True)))] = True
    _mark_uncovered(inside, polygons[~covered], box=box, downsample=downsample)
    return inside


def draw_area(
    area: Any, *, shape: tuple[int, int], pixel_l0: tuple[float, float]
) -> NDArray[np.bool_]:
    """Draw an area on a whole grid, whose pixels need not be square.

    Parameters
    ----------
    area : shapely MultiPolygon, level-0 px
        Valid; may be empty.
    shape : (height, width)
    pixel_l0 : (x, y), level-0 px
        Sides of a pixel.

    Returns
    -------
    inside : (height, width) bool
        As `rasterise`: a polygon smaller than a pixel still gets one.
    """
    polygons = np.array(polygons_of(area), dtype=object)
    if not polygons.size:
        return np.zeros(shape, np.bool_)
    scaled = shapely.transform(polygons, lambda points: points / np.array(pixel_l0))
    return rasterise(scaled, box=Box(0, 0, *shape), downsample=1)


@dataclass(frozen=True)
class _Edges:
    """Edges of polygons, from the upper end to the lower; pixel centres are whole numbers."""

    owner: NDArray[np.int64]  # (n,) index of the polygon
    upper: NDArray[np.float64]  # (n, 2) x, y
    lower: NDArray[np.float64]  # (n, 2)
    first: NDArray[np.int64]  # (n,) first row of the box whose centre line is crossed
    n_rows: NDArray[np.int64]  # (n,) that are crossed


def _list_edges(polygons: NDArray[Any], *, box: Box, downsample: float) -> _Edges:
    rings, owner_of_ring = shapely.get_rings(polygons, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    points = points / downsample - (np.array([box.col, box.row]) + 0.5)
    y = points[:, 1]
    start = np.flatnonzero(ring[1:] == ring[:-1])
    # From the upper end to the lower, so that two polygons cut a shared edge at the same place.
    upper = np.where(y[start] <= y[start + 1], start, start + 1)
    lower = np.where(y[start] <= y[start + 1], start + 1, start)
    first = np.clip(np.ceil(y[upper]), 0, box.height).astype(np.int64)
    stop = np.clip(np.ceil(y[lower]), 0, box.height).astype(np.int64)
    owner = owner_of_ring[ring[upper]].astype(np.int64)
    return _Edges(owner, points[upper], points[lower], first, stop - first)


def _crossings(
    edges: _Edges,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """List where edges cross the rows' centre lines, some edges at a time.

    Yields
    ------
    owner, row, col : (n_crossings,) int64
        Index of the polygon; row of the box; first column whose centre is not left of the crossing
        (may lie outside the box).
    """
    group = np.cumsum(edges.n_rows) // CROSSINGS_AT_ONCE
    for some in np.split(np.arange(len(group)), np.flatnonzero(np.diff(group)) + 1):
        n_rows = edges.n_rows[some]
        edge = np.repeat(some, n_rows)
        offset = np.arange(edge.size) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)
        row = edges.first[edge] + offset
        (x0, y0), (x1, y1) = edges.upper[edge].T, edges.lower[edge].T
        crossing = x0 + (row - y0) * ((x1 - x0) / (y1 - y0))
        yield edges.owner[edge], row, np.ceil(crossing).astype(np.int64)


def _find_covered(
    owner: NDArray[np.int64], row: NDArray[np.int64], col: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Find the polygons that cover some pixel's centre, from all their crossings."""
    # Sorted by polygon, row and column, crossings pair up: into the polygon, out of it.
    order = np.lexsort((col, row, owner))
    enter, leave = order[0::2], order[1::2]
    return owner[enter[col[leave] > col[enter]]]


def _mark_uncovered(
    inside: NDArray[np.bool_], polygons: NDArray[Any], *, box: Box, downsample: float
) -> None:
    points = shapely.point_on_surface(polygons)
    rows = np.floor(shapely.get_y(points) / downsample).astype(np.int64) - box.row
    cols = np.floor(shapely.get_x(points) / downsample).astype(np.int64) - box.col
    seen = (rows >= 0) & (rows < box.height) & (cols >= 0) & (cols < box.width)
    inside[rows[seen], cols[seen]] = True
