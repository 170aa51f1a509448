"""Maps of patches, stitched to a map of their slide.

A pixel of the slide's map is the mean of the patches' maps over the area that it covers; where
patches overlap, the mean over the patches that hold its centre. Values are not rescaled from patch
to patch: a patch in which a method finds little stays faint.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.contracts import Heatmap
from wsi_pipeline.errors import HeatmapError


def stitch_maps(
    maps: Iterable[tuple[tuple[float, float], NDArray[np.floating]]],
    *,
    slide_size: tuple[int, int],
    scale: tuple[float, float],
    step_px: int,
) -> Heatmap:
    """Stitch maps of patches.

    Parameters
    ----------
    maps : iterable of (corner, values)
        The corner, (x, y) in level-0 px, of a map (h, w); one value per px.
    slide_size : (width, height), level-0 px
    scale : (x, y)
        Level-0 px per px of the maps.
    step_px : int
        Side of a pixel of the result, px of the maps; rounded to whole level-0 px.

    Returns
    -------
    heatmap : Heatmap
        NaN where no map is.

    Raises
    ------
    HeatmapError
        If the step is less than 1.

    Examples
    --------
    >>> left, right = np.zeros((2, 2)), np.ones((2, 2))
    >>> found = stitch_maps([((0, 0), left), ((2, 0), right)], slide_size=(6, 2), scale=(1, 1),
    ...     step_px=1)
    >>> found.values[0]
    array([ 0.,  0.,  1.,  1., nan, nan], dtype=float32)
    """
    if step_px < 1:
        raise HeatmapError(f"the pixel of a map must be at least 1 px, got {step_px}")
    pixel = tuple(
        min(max(1, round(step_px * s)), side) for s, side in zip(scale, slide_size, strict=True)
    )
    shape = (-(-slide_size[1] // pixel[1]), -(-slide_size[0] // pixel[0]))
    sums, counts = np.zeros(shape), np.zeros(shape, np.uint32)
    for (x, y), values in maps:
        rows, tops, bottoms = _cells(y, values.shape[0], scale[1], pixel[1], shape[0])
        columns, lefts, rights = _cells(x, values.shape[1], scale[0], pixel[0], shape[1])
        summed = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
        summed[1:, 1:] = values.astype(np.float64).cumsum(axis=0).cumsum(axis=1)
        strips = summed[bottoms] - summed[tops]
        areas = np.outer(bottoms - tops, rights - lefts)
        sums[rows, columns] += (strips[:, rights] - strips[:, lefts]) / areas
        counts[rows, columns] += 1
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that is wanted
        means = (sums / counts).astype(np.float32)
    return Heatmap(values=means, pixel_l0=(pixel[0], pixel[1]), slide_size=slide_size)


def _cells(
    start: float, length: int, scale: float, pixel: int, n_cells: int
) -> tuple[slice, NDArray[np.int64], NDArray[np.int64]]:
    """Find the cells along one axis whose centre lies in a map, and the px of the map in each.

    Parameters
    ----------
    start : level-0 px
    length : px of the map
    scale : level-0 px per px
    pixel : level-0 px
        Side of a cell.
    n_cells : int

    Returns
    -------
    cells : slice
    first, stop : (n,)
        Px of the map, at least one for each cell.
    """
    ends = np.ceil(np.array([start, start + length * scale]) / pixel - 0.5).astype(np.int64)
    low, high = np.clip(ends, 0, n_cells).tolist()
    edges = np.rint((np.arange(low, high + 1) * pixel - start) / scale).astype(np.int64)
    first = edges[:-1].clip(0, length - 1)
    return slice(low, high), first, np.maximum(edges[1:].clip(0, length), first + 1)
