"""Heatmap pixels at or above a threshold, merged into polygons. Pure."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage

from wsi_pipeline.contracts import Heatmap, Rule


@dataclass(frozen=True)
class Region:
    """Pixels connected by their edges."""

    outline: Any  # shapely Polygon, level-0 px, within the slide
    highest: float  # score
    mean: float  # score, over its pixels


def find_regions(heatmap: Heatmap, threshold: float) -> list[Region]:
    """Merge the pixels whose score is at least `threshold`.

    Returns
    -------
    regions : list of Region
        In the order of their first pixel. Pixels that touch only at a corner are not connected.
    """
    hot = Rule(threshold).decide(heatmap.values)
    labels, n = ndimage.label(hot)
    if n == 0:
        return []
    rows, starts, stops = _find_runs(hot)
    owners = labels[rows, starts]
    order = np.argsort(owners, kind="stable")
    boxes = _draw_boxes(heatmap, rows[order], starts[order], stops[order])
    ends = np.flatnonzero(np.diff(owners[order])) + 1
    outlines = [shapely.union_all(part) for part in np.split(boxes, ends)]
    member, values = labels[hot] - 1, heatmap.values[hot]
    highest = np.zeros(n, np.float32)
    np.maximum.at(highest, member, values)
    mean = np.bincount(member, values) / np.bincount(member)
    return [
        Region(outline, float(high), float(average))
        for outline, high, average in zip(outlines, highest, mean, strict=True)
    ]


def _find_runs(
    hot: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Row, first column and column past the last of each run of True along a row."""
    padded = np.zeros((hot.shape[0], hot.shape[1] + 2), np.int8)
    padded[:, 1:-1] = hot
    steps = np.diff(padded, axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, stops = np.nonzero(steps == -1)
    return rows, starts, stops


def _draw_boxes(
    heatmap: Heatmap, rows: NDArray[np.int64], starts: NDArray[np.int64], stops: NDArray[np.int64]
) -> Any:
    """Rectangles of runs, level-0 px, cut at the slide's edges."""
    (pixel_x, pixel_y), (width, height) = heatmap.pixel_l0, heatmap.slide_size
    return shapely.box(
        starts * pixel_x,
        rows * pixel_y,
        np.minimum(stops * pixel_x, width),
        np.minimum((rows + 1) * pixel_y, height),
    )
