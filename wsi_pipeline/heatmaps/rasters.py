"""Rasterisation of patch scores into an image of the slide.

Pure: nothing here opens a file. A heatmap pixel covers a rectangle of ``pixel_l0`` level-0 pixels,
the first one at the slide's corner. A patch covers the heatmap pixels whose centre it contains; on
the grid of `tiling.grid`, patches cover whole pixels and the rule is exact to the level-0 pixel.

The cost is linear: a patch adds to the four corners of its rectangle, and two running sums turn
corners into areas, so a patch costs the same however many heatmap pixels it covers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.config.settings import Overlap
from wsi_pipeline.contracts import Heatmap
from wsi_pipeline.errors import HeatmapError

MAX_PIXELS_PER_STRIDE = 4  # a pixel finer than a quarter of the stride shows nothing more
_BAND_PX = 1 << 19  # heatmap pixels summed at a time: two float64 bands of this size are 8 MiB
_PART = 1 << 14  # patches rasterised at a time


@dataclass(frozen=True)
class _Raster:
    """A grid of cells, starting at the slide's corner."""

    cell_l0: tuple[int, int]  # (x, y) level-0 px
    shape: tuple[int, int]  # (H, W) cells


def choose_pixel(
    patch_l0: tuple[int, int],
    stride_l0: tuple[int, int],
    coords: NDArray[np.int64] | None = None,
) -> tuple[int, int]:
    """Choose the size of a heatmap pixel in level-0 px.

    The largest pixel such that patch, stride and all corners are multiples of it, so that patches
    cover whole pixels. If that is finer than a quarter of the stride, along x or along y: a quarter
    of the stride along both axes, so that pixels are about square.

    Parameters
    ----------
    patch_l0, stride_l0 : (x, y), level-0 px
    coords : (N, 2), level-0 px, optional
        Corners of the patches; multiples of the stride by default.

    Returns
    -------
    pixel_l0 : (x, y), level-0 px

    Examples
    --------
    >>> choose_pixel((512, 512), (512, 512)), choose_pixel((512, 512), (256, 256))
    ((512, 512), (256, 256))
    >>> choose_pixel((1053, 1053), (526, 526)), choose_pixel((64, 64), (64, 64), [[101, 39]])
    ((132, 132), (16, 16))
    """
    _check_lengths(patch_l0, stride_l0)
    corners = np.zeros(2, np.int64) if coords is None else np.gcd.reduce(coords, axis=0)
    finest = tuple(-(-stride // MAX_PIXELS_PER_STRIDE) for stride in stride_l0)
    common = np.gcd(np.gcd(patch_l0, stride_l0), corners)
    x, y = common.tolist() if (common >= finest).all() else np.minimum(finest, patch_l0).tolist()
    return x, y


def rasterise_scores(
    coords: NDArray[np.int64],
    scores: NDArray[np.float32],
    *,
    slide_size: tuple[int, int],
    patch_l0: tuple[int, int],
    stride_l0: tuple[int, int],
    overlap: Overlap = "mean",
    pixel_l0: tuple[int, int] | None = None,
) -> Heatmap:
    """Rasterise patch scores into a heatmap of the slide.

    Parameters
    ----------
    coords : (N, 2), level-0 px
        Top-left corners (x, y) of the patches; any integers, in any order.
    scores : (N,) in [0, 1]
        Higher is more suspicious; NaN (unreadable) is ignored.
    slide_size : (width, height), level-0 px
    patch_l0, stride_l0 : (x, y), level-0 px
        Size of a patch, and the step between patches.
    overlap : {"mean", "max", "centre"}
        Value of a pixel that several patches cover: the mean, the maximum, or the mean with weights
        that fall linearly, along x and along y, from a patch's centre to its edge.
    pixel_l0 : (x, y), level-0 px, optional
        Size of a heatmap pixel; default: `choose_pixel`.

    Returns
    -------
    heatmap : Heatmap
        Values (ceil(height / pixel), ceil(width / pixel)) float32; NaN where no patch was scored.

    Raises
    ------
    HeatmapError
        If shapes, lengths or scores are not as above, or a patch lies outside the slide.
    """
    _check_shapes(coords, scores)
    pixel = choose_pixel(patch_l0, stride_l0, coords) if pixel_l0 is None else pixel_l0
    _check_lengths(patch_l0, stride_l0, pixel, slide_size)
    _check_pixel(pixel, patch_l0)
    coords, scores = _check_patches(coords, scores, slide_size=slide_size, patch_l0=patch_l0)
    shape = _raster_shape(slide_size, pixel)
    if len(scores) == 0:
        return Heatmap(np.full(shape, np.nan, np.float32), pixel, slide_size)
    if overlap == "centre":  # here weights differ within the coarser cells
        raster = _Raster(pixel, shape)
    else:
        raster = _coarsest_raster(coords, patch_l0, stride_l0, pixel, slide_size)
    values = _RASTERISE[overlap](coords, scores, patch_l0, raster)
    # A mean lies between its values: this undoes the last bit of rounding in the running sums.
    np.clip(values, scores.min(), scores.max(), out=values)
    fine = (raster.cell_l0[1] // pixel[1], raster.cell_l0[0] // pixel[0])
    return Heatmap(_repeat(values, fine, shape), pixel, slide_size)


def _check_lengths(*lengths: tuple[int, int]) -> None:
    for x, y in lengths:
        if x < 1 or y < 1:
            raise HeatmapError(
                f"patch, stride, pixel and slide must be at least one level-0 pixel, got {(x, y)}"
            )


def _check_pixel(pixel: tuple[int, int], patch_l0: tuple[int, int]) -> None:
    if pixel[0] > patch_l0[0] or pixel[1] > patch_l0[1]:
        raise HeatmapError(
            f"a heatmap pixel of {pixel} level-0 px is larger than a patch of {patch_l0}: "
            "patches would be lost between pixel centres; use a pixel no larger than the patch"
        )


def _check_shapes(coords: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
    if scores.ndim != 1 or coords.shape != (len(scores), 2):
        raise HeatmapError(
            f"coords must be (N, 2) and scores (N,), got {coords.shape} and {scores.shape}"
        )


def _check_patches(
    coords: NDArray[np.int64],
    scores: NDArray[np.float32],
    *,
    slide_size: tuple[int, int],
    patch_l0: tuple[int, int],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Check the patches and leave out those without a score."""
    scored = ~np.isnan(scores)
    if not scored.all():
        coords, scores = coords[scored], scores[scored]
    if len(scores) == 0:
        return coords, scores
    if scores.min() < 0 or scores.max() > 1:
        raise HeatmapError(
            f"scores must lie in [0, 1], got {scores.min()} to {scores.max()}; are these logits?"
        )
    for axis, name in enumerate("xy"):
        low, high = int(coords[:, axis].min()), int(coords[:, axis].max())
        if low <= -patch_l0[axis] or high >= slide_size[axis]:
            raise HeatmapError(
                f"patches from {name} = {low} to {high} do not all touch the slide of "
                f"{slide_size[0]} x {slide_size[1]} px; were they scored on another slide?"
            )
    return coords, scores


def _raster_shape(slide_size: tuple[int, int], pixel: tuple[int, int]) -> tuple[int, int]:
    return -(-slide_size[1] // pixel[1]), -(-slide_size[0] // pixel[0])


def _coarsest_raster(
    coords: NDArray[np.int64],
    patch_l0: tuple[int, int],
    stride_l0: tuple[int, int],
    pixel: tuple[int, int],
    slide_size: tuple[int, int],
) -> _Raster:
    """Find the coarsest cells on which the result is the same: the fewer cells, the faster."""
    cell = (int(np.gcd(patch_l0[0], stride_l0[0])), int(np.gcd(patch_l0[1], stride_l0[1])))
    divides = cell[0] % pixel[0] == 0 and cell[1] % pixel[1] == 0
    coarser = divides and cell != pixel and _on_lattice(coords, cell)
    if not coarser:
        cell = pixel
    return _Raster(cell, _raster_shape(slide_size, cell))


def _on_lattice(coords: NDArray[np.int64], cell: tuple[int, int]) -> bool:
    return all(_cells(coords[part], cell) is not None for part in _parts(slice(0, len(coords))))


def _cells(
    coords: NDArray[np.int64], cell: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Column and row of each patch in cells, or None if a corner lies inside a cell."""
    x, y = np.ascontiguousarray(coords.T)  # in one piece, numbers are divided twice as fast
    column, row = x // cell[0], y // cell[1]
    exact = np.array_equal(column * cell[0], x) and np.array_equal(row * cell[1], y)
    return (column, row) if exact else None


def _first_pixel(start: NDArray[np.int64], pixel: int, size: int) -> NDArray[np.int64]:
    """First of `size` pixels whose centre lies at or after `start` (level-0 px)."""
    # Smallest j with (j + 1/2) * pixel >= start, in whole numbers.
    first = _unbounded_pixel(start, pixel)
    return np.clip(first, 0, size, out=first)


def _unbounded_pixel(start: NDArray[np.int64], pixel: int) -> NDArray[np.int64]:
    return -((pixel - 2 * start) // (2 * pixel))


def _rasterise_mean(
    coords: NDArray[np.int64],
    scores: NDArray[np.float32],
    patch_l0: tuple[int, int],
    raster: _Raster,
) -> NDArray[np.float32]:
    if raster.cell_l0 == patch_l0 and coords.min() >= 0:
        single = _rasterise_single_cells(coords, scores, raster)
        if single is not None:
            return single
    values = np.empty(raster.shape, np.float32)
    for rows, total, count in _sum_bands(coords, scores, patch_l0, raster):
        with np.errstate(divide="ignore", invalid="ignore"):  # over holes, which become NaN
            np.divide(total, count, out=total)
        total[count == 0] = np.nan
        values[rows] = total
    return values


def _rasterise_single_cells(
    coords: NDArray[np.int64], scores: NDArray[np.float32], raster: _Raster
) -> NDArray[np.float32] | None:
    """Average where a patch is one cell, each adding to one number; None if one is not."""
    total, count = np.zeros((2, *raster.shape))
    for part in _parts(slice(0, len(scores))):
        cells = _cells(coords[part], raster.cell_l0)
        if cells is None:
            return None
        index = cells[1] * raster.shape[1] + cells[0]
        np.add.at(total.reshape(-1), index, scores[part].astype(np.float64))
        np.add.at(count.reshape(-1), index, 1.0)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that is wanted
        np.divide(total, count, out=total)
    return total.astype(np.float32)


def _bands(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Cut the rows of a raster into bands [start, stop) of a bounded number of pixels."""
    height, width = shape
    rows = max(1, _BAND_PX // (width + 1))
    return [(start, min(start + rows, height)) for start in range(0, height, rows)]


def _sum_bands(
    coords: NDArray[np.int64],
    scores: NDArray[np.float32],
    patch_l0: tuple[int, int],
    raster: _Raster,
) -> Iterator[tuple[slice, NDArray[np.float64], NDArray[np.float64]]]:
    """Yield rows of the raster with the sum and the number of the patches over each pixel.

    In bands of rows, so that the sums never need the memory of the whole raster: the running sum
    down the columns is carried from band to band.
    """
    bands = _bands(raster.shape)
    if len(bands) > 1 and (np.diff(coords[:, 1]) < 0).any():
        order = np.argsort(coords[:, 1], kind="stable")
        coords, scores = coords[order], scores[order]
    width = raster.shape[1] + 1
    carry_total, carry_count = np.zeros(width), np.zeros(width)
    for start, stop in bands:
        # One row more than the band: corners below the raster's last row fall in it.
        total, count = np.zeros((2, stop - start + 1, width))
        for edge, sign in ((0, 1.0), (patch_l0[1], -1.0)):
            rows = slice(0, len(scores))
            if len(bands) > 1:
                y_first, y_last = (_level_0(row, raster.cell_l0[1]) - edge for row in (start, stop))
                rows = slice(*np.searchsorted(coords[:, 1], (y_first, y_last), side="right"))
                rows = slice(0 if start == 0 else rows.start, rows.stop)
            for part in _parts(rows):
                left, right = _corners(coords[part], edge, patch_l0[0], raster)
                left -= start * width
                right -= start * width
                _add_corners(total, left, right, sign * scores[part].astype(np.float64))
                _add_corners(count, left, right, np.full(len(left), sign))
        yield slice(start, stop), _sum_up(total, carry_total), _sum_up(count, carry_count)


def _level_0(pixel: int, pixel_l0: int) -> int:
    """The last level-0 px from which `_first_pixel` gives a pixel before `pixel`."""
    return (2 * pixel - 1) * pixel_l0 // 2


def _parts(rows: slice) -> Iterator[slice]:
    """Cut a slice into parts that stay in the processor's cache."""
    for start in range(rows.start, rows.stop, _PART):
        yield slice(start, min(start + _PART, rows.stop))


def _corners(
    coords: NDArray[np.int64], edge: int, patch_width: int, raster: _Raster
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Left and right end of the patches' edge `edge` px below their top, as flat indices."""
    (cell_x, cell_y), (height, width) = raster.cell_l0, raster.shape
    row = _first_pixel(coords[:, 1] + edge, cell_y, height) * (width + 1)
    left = _first_pixel(coords[:, 0], cell_x, width)
    right = _first_pixel(coords[:, 0] + patch_width, cell_x, width)
    return row + left, row + right


def _add_corners(
    band: NDArray[np.float64],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> None:
    flat = band.reshape(-1)
    np.add.at(flat, left, weights)
    np.subtract.at(flat, right, weights)


def _sum_up(band: NDArray[np.float64], carry: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn corner weights of a band into areas; `carry` goes in from above and out below."""
    band = band[:-1]
    band[0] += carry
    np.cumsum(band, axis=0, out=band)
    carry[:] = band[-1]
    np.cumsum(band, axis=1, out=band)
    return band[:, :-1]


@dataclass(frozen=True)
class _Rectangles:
    """The cells that each patch covers: rows [top, bottom), columns [left, right)."""

    top: NDArray[np.int64]  # (N,)
    bottom: NDArray[np.int64]  # (N,)
    left: NDArray[np.int64]  # (N,)
    right: NDArray[np.int64]  # (N,)


def _cover(coords: NDArray[np.int64], patch_l0: tuple[int, int], raster: _Raster) -> _Rectangles:
    x, y = coords[:, 0], coords[:, 1]
    (cell_x, cell_y), (height, width) = raster.cell_l0, raster.shape
    return _Rectangles(
        top=_first_pixel(y, cell_y, height),
        bottom=_first_pixel(y + patch_l0[1], cell_y, height),
        left=_first_pixel(x, cell_x, width),
        right=_first_pixel(x + patch_l0[0], cell_x, width),
    )


def _rasterise_max(
    coords: NDArray[np.int64],
    scores: NDArray[np.float32],
    patch_l0: tuple[int, int],
    raster: _Raster,
) -> NDArray[np.float32]:
    """Show the highest score over each pixel.

    Patches of one size cover at most two counts of pixels along an axis (more at the slide's
    edges). Those of one footprint are placed by their corner and spread by a running maximum.
    """
    rectangles = _cover(coords, patch_l0, raster)
    width = raster.shape[1]
    tall = rectangles.bottom - rectangles.top
    wide = rectangles.right - rectangles.left
    values = np.full(raster.shape, -np.inf, np.float32)
    for footprint in np.unique(tall * (width + 1) + wide):
        rows, columns = divmod(int(footprint), width + 1)
        if rows == 0 or columns == 0:
            continue  # the patch contains no pixel's centre
        same = (tall == rows) & (wide == columns)
        corners = np.full(raster.shape, -np.inf, np.float32)
        at = (rectangles.top[same], rectangles.left[same])
        np.maximum.at(corners, at, scores[same])
        for axis, size in ((0, rows), (1, columns)):
            corners = _spread_maximum(corners, size, axis)
        np.maximum(values, corners, out=values)
    values[np.isneginf(values)] = np.nan
    return values


def _spread_maximum(values: NDArray[np.float32], size: int, axis: int) -> NDArray[np.float32]:
    """Maximum over the last `size` values up to each one."""
    if size == 1:
        return values
    from scipy.ndimage import maximum_filter1d  # a quarter of a second

    spread: NDArray[np.float32] = maximum_filter1d(
        values, size, axis=axis, mode="constant", cval=-np.inf, origin=(size - 1) // 2
    )
    return spread


def _rasterise_centre(
    coords: NDArray[np.int64],
    scores: NDArray[np.float32],
    patch_l0: tuple[int, int],
    raster: _Raster,
) -> NDArray[np.float32]:
    """Average with weights that fall from a patch's centre to its edge.

    Patches of one footprint are placed by their corner and spread by a separable kernel, in bands
    of rows.
    """
    order = np.argsort(coords[:, 1], kind="stable")
    coords, scores = coords[order], scores[order]
    (cell_x, cell_y), (height, width) = raster.cell_l0, raster.shape
    top, left = _unbounded_pixel(coords[:, 1], cell_y), _unbounded_pixel(coords[:, 0], cell_x)
    tall = _unbounded_pixel(coords[:, 1] + patch_l0[1], cell_y) - top
    wide = _unbounded_pixel(coords[:, 0] + patch_l0[0], cell_x) - left
    footprints = np.unique(np.stack([tall, wide], axis=1), axis=0)
    values = np.empty(raster.shape, np.float32)
    for start, stop in _bands((height, width)):
        sums = np.zeros((2, stop - start, width))  # of weighted scores, and of weights
        for rows, columns in footprints:
            near = slice(*np.searchsorted(top, (start - rows + 1, stop)))
            same = (tall[near] == rows) & (wide[near] == columns)
            corners = np.zeros((2, stop - start + rows - 1, width + columns - 1))
            at = (top[near][same] - start + rows - 1, left[near][same] + columns - 1)
            inside = (at[1] >= 0) & (at[1] < width + columns - 1)
            at = (at[0][inside], at[1][inside])
            np.add.at(corners[0], at, scores[near][same][inside].astype(np.float64))
            np.add.at(corners[1], at, 1.0)
            down = _spread_sum(corners, _tent(rows), axis=1)
            sums += _spread_sum(down, _tent(columns), axis=2)
        with np.errstate(divide="ignore", invalid="ignore"):  # over holes, which become NaN
            values[start:stop] = sums[0] / sums[1]
    return values


def _tent(size: int) -> NDArray[np.float64]:
    """Weights of the pixels along a patch's side: 1 at its centre, falling to 0 at its edges.

    Examples
    --------
    >>> _tent(4).tolist(), _tent(1).tolist()
    ([0.25, 0.75, 0.75, 0.25], [1.0])
    """
    return 1 - np.abs((2 * np.arange(size) + 1) / size - 1)


def _spread_sum(
    values: NDArray[np.float64], weights: NDArray[np.float64], axis: int
) -> NDArray[np.float64]:
    """Sum, at each place, the last len(weights) values up to it; the first places are dropped."""
    size = values.shape[axis] - len(weights) + 1
    shape = list(values.shape)
    shape[axis] = size
    spread = np.zeros(shape)
    for back, weight in enumerate(weights):
        start = len(weights) - 1 - back
        spread += weight * np.take(values, np.arange(start, start + size), axis=axis)
    return spread


_RASTERISE = {"mean": _rasterise_mean, "max": _rasterise_max, "centre": _rasterise_centre}


def _repeat(
    values: NDArray[np.float32], times: tuple[int, int], shape: tuple[int, int]
) -> NDArray[np.float32]:
    """Repeat each value `times` (down, across), cut to `shape`."""
    down, across = times
    height, width = shape
    if across > 1:
        values = np.repeat(values, across, axis=1)[:, :width]
    if down == 1:
        return np.ascontiguousarray(values)
    out = np.empty(shape, np.float32)
    whole = height // down
    out[: whole * down].reshape(whole, down, width)[:] = values[:whole, None]
    out[whole * down :] = values[whole:]
    return out
