"""The share of each tile that is tissue, by a mask on a small picture of the slide."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.errors import TissueError

# (n_tiles, 2) level-0 px -> (n_tiles,) share of each tile that is tissue
TissueMeter = Callable[[NDArray[np.int64]], NDArray[np.float32]]

TILES_AT_ONCE = 2**13  # measured; the rows of the mask under them are summed
KEEP_EVERY = 32  # rows of sums


class SummedMask:
    """A mask prepared for measuring many tiles, group by group.

    Parameters
    ----------
    mask : (H, W) bool or float32
        True on tissue, or the share of each pixel; its top-left corner is that of the slide.
    pixel_l0 : (x, y), level-0 px
        Sides of one mask pixel.

    Raises
    ------
    TissueError
        If a length is not positive.

    Examples
    --------
    >>> summed = SummedMask(np.array([[True, False]]), (4.0, 4.0))
    >>> summed.tile_fraction(np.array([[0, 0], [2, 0], [4, 0]]), (4, 4)).tolist()
    [1.0, 0.5, 0.0]
    """

    def __init__(
        self, mask: NDArray[np.bool_] | NDArray[np.float32], pixel_l0: tuple[float, float]
    ) -> None:
        if not min(pixel_l0) > 0:
            raise TissueError(f"a mask's pixels must have positive sides, got {pixel_l0}")
        self._pixel_l0 = pixel_l0
        self._totals = _RowTotals(mask)

    def tile_fraction(
        self, coords: NDArray[np.int64], tile_l0: tuple[int, int]
    ) -> NDArray[np.float32]:
        """Measure the share of each tile that is tissue, to the fraction of a mask pixel.

        Parameters
        ----------
        coords : (n_tiles, 2), level-0 px
            Top-left corners (x, y).
        tile_l0 : (x, y), level-0 px
            Sides of a tile.

        Returns
        -------
        fraction : (n_tiles,) float32 in [0, 1]
            What lies outside the mask counts as no tissue.
        """
        if min(tile_l0) <= 0:
            raise TissueError(f"tiles must have positive sides, got {tile_l0}")
        coords = np.asarray(coords, dtype=np.int64).reshape(-1, 2)
        fraction = np.empty(len(coords), np.float32)
        order = np.argsort(coords[:, 1], kind="stable")
        for rows in np.split(order, np.arange(TILES_AT_ONCE, len(order), TILES_AT_ONCE)):
            fraction[rows] = self._measure(coords[rows], tile_l0)
        return fraction

    def _measure(self, coords: NDArray[np.int64], tile_l0: tuple[int, int]) -> NDArray[np.float32]:
        first = coords / np.array(self._pixel_l0)  # mask px
        last = (coords + np.array(tile_l0)) / np.array(self._pixel_l0)
        (below_right, below_left), (above_right, above_left) = self._totals.areas_above(
            (last[:, 1], first[:, 1]), (last[:, 0], first[:, 0])
        )
        area = below_right - below_left - above_right + above_left
        tile_area = math.prod(tile_l0) / math.prod(self._pixel_l0)
        return np.clip(area / tile_area, 0.0, 1.0).astype(np.float32)


class _RowTotals:
    """Sums of a mask above each pixel corner, for the rows that are asked for.

    All of them would take four to eight times the memory of the mask. Some rows are kept, and those
    between are summed again from the one above.
    """

    def __init__(self, mask: NDArray[np.bool_] | NDArray[np.float32]) -> None:
        self._mask = mask
        self._dtype = np.int64 if mask.dtype == np.bool_ else np.float64  # whole numbers are exact
        height, width = mask.shape
        total = np.zeros(width + 1, self._dtype)
        self._kept = np.empty((height // KEEP_EVERY + 1, width + 1), self._dtype)
        for row in range(height):
            if row % KEEP_EVERY == 0:
                self._kept[row // KEEP_EVERY] = total
            total[1:] += np.cumsum(mask[row], dtype=self._dtype)
        if height % KEEP_EVERY == 0:
            self._kept[height // KEEP_EVERY] = total

    def areas_above(
        self, ys: Sequence[NDArray[np.float64]], xs: Sequence[NDArray[np.float64]]
    ) -> list[list[NDArray[np.float64]]]:
        """Area of the mask above and left of positions, for each of `ys`, each of `xs`; mask px².

        Within a pixel the summed area grows linearly along each axis, so that bilinear
        interpolation between its corners is exact.
        """
        height, width = self._mask.shape
        ys = [np.clip(y, 0, height) for y in ys]
        first = [np.minimum(y.astype(np.int64), max(height - 1, 0)) for y in ys]
        corners = [*first, *(np.minimum(row + 1, height) for row in first)]
        rows, at = np.unique(np.concatenate(corners), return_inverse=True)
        total = self._sum(rows)
        upper, lower = np.split(at.reshape(len(corners), -1), 2)
        columns = []
        for x in xs:
            x = np.clip(x, 0, width)
            column = np.minimum(x.astype(np.int64), max(width - 1, 0))
            columns.append((column, np.minimum(column + 1, width), x - column))

        def along(row: NDArray[np.int64], x: int) -> NDArray[np.float64]:
            column, next_column, right = columns[x]
            found: NDArray[np.float64] = total[row, column] * (1 - right)
            found += total[row, next_column] * right
            return found

        return [
            [
                along(upper[i], x) * (1 - (y - row)) + along(lower[i], x) * (y - row)
                for x in range(len(xs))
            ]
            for i, (y, row) in enumerate(zip(ys, first, strict=True))
        ]

    def _sum(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Sums above some rows, in order; (n_rows, W + 1)."""
        found = np.empty((len(rows), self._mask.shape[1] + 1), self._dtype)
        at, total = -1, self._kept[0]
        for number, row in enumerate(rows.tolist()):
            if at < 0 or row - at > row % KEEP_EVERY:
                at = row - row % KEEP_EVERY
                total = self._kept[at // KEEP_EVERY].copy()
            for between in range(at, row):
                total[1:] += np.cumsum(self._mask[between], dtype=self._dtype)
            at = row
            found[number] = total
        return found
