"""Areas that squares share with an annotation; needs shapely, as labels without one do not."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from tiling.contracts import Annotation
from tiling.polygons import polygons_of

SLIVER = 1e-6  # of a square: far above what rounding leaves where a cut meets an outline
FEW_VERTICES, FEW_BOXES = 256, 4  # below these, to cut further costs more than it saves
GROUPS = 16  # of boxes; 8 to 32 take the same time, 2 takes twice that


@dataclass(frozen=True)
class Overlaps:
    """Where squares and lesions share an area; sorted by tile, then lesion."""

    tile: NDArray[np.int64]  # (n_pairs,) row of the square
    lesion: NDArray[np.int64]  # (n_pairs,) index of the lesion
    area: NDArray[np.float64]  # (n_pairs,) level-0 px²


def measure_overlaps(squares: NDArray[np.float64], annotation: Annotation) -> Overlaps:
    """Measure what squares share with each lesion.

    Parameters
    ----------
    squares : (n, 4), level-0 px
        x0, y0, x1, y1.
    annotation : Annotation
    """
    boxes = shapely.box(*squares.T)
    tree = shapely.STRtree(boxes)
    found = [_overlap_lesion(boxes, tree, lesion) for lesion in annotation.lesions]
    tile = np.concatenate([np.empty(0, np.int64), *(tile for tile, _ in found)])
    area = np.concatenate([np.empty(0), *(area for _, area in found)])
    lesion = np.repeat(np.arange(len(found), dtype=np.int64), [len(tile) for tile, _ in found])
    order = np.lexsort((lesion, tile))
    return Overlaps(tile[order], lesion[order], area[order])


def _overlap_lesion(
    boxes: NDArray[np.object_], tree: Any, lesion: Any
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find the boxes that share an area with one lesion, and that area."""
    shapely.prepare(lesion)
    near = tree.query(lesion).astype(np.int64)  # bounding boxes meet
    whole = shapely.covers(lesion, boxes[near])
    inside, rest = near[whole], near[~whole]
    rest = rest[shapely.intersects(lesion, boxes[rest])]
    area = _clip_areas(lesion, boxes[rest])
    # If almost nothing is shared, the whole outline decides whether it is more than an edge.
    doubtful = area < SLIVER * shapely.area(boxes[rest])
    doubtful[doubtful] = shapely.touches(lesion, boxes[rest[doubtful]])
    rest, area = rest[~doubtful], area[~doubtful]
    return np.concatenate([inside, rest]), np.concatenate([shapely.area(boxes[inside]), area])


def _clip_areas(lesion: Any, boxes: NDArray[np.object_]) -> NDArray[np.float64]:
    """Measure what each box holds of a lesion.

    To cut every box out of the whole outline costs boxes x vertices. So the boxes are grouped, the
    outline is cut to what each group spans, and so on, until little is left of it.
    """
    n_vertices = shapely.get_num_coordinates(lesion)
    if n_vertices <= FEW_VERTICES or len(boxes) <= FEW_BOXES:
        areas: NDArray[np.float64] = shapely.area(shapely.intersection(lesion, boxes))
        return areas
    corners = shapely.bounds(boxes)
    spread = np.ptp(corners[:, :2], axis=0)
    order = np.argsort(corners[:, int(spread[1] > spread[0])], kind="stable")
    result = np.empty(len(boxes))
    for group in np.array_split(order, min(GROUPS, len(order))):
        span = shapely.box(*corners[group, :2].min(axis=0), *corners[group, 2:].max(axis=0))
        part = shapely.MultiPolygon(polygons_of(shapely.intersection(lesion, span)))
        result[group] = _clip_areas(part, boxes[group])
    return result


def centres_covered(squares: NDArray[np.float64], annotation: Annotation) -> NDArray[np.bool_]:
    """Find the squares whose centre is inside the tumour; (n,)."""
    x, y = ((squares[:, :2] + squares[:, 2:]) / 2).T
    shapely.prepare(annotation.tumour)
    covered: NDArray[np.bool_] = shapely.intersects_xy(annotation.tumour, x, y)
    return covered
