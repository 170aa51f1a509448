"""What polygons drawn by hand become: valid areas, their union, and the lesions in it.

Pure geometry on shapely shapes in level-0 pixels; the file formats are read in `annotations`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from tiling.components import connect
from tiling.contracts import Annotation

# Outlines are whole or tenths of pixels; what is smaller than these is rounding of float64.
TOUCH_L0 = 1e-6  # parts this near touch: a vertex on a slanted edge is seldom exactly on it
MIN_AREA_L0 = 1e-6  # px²; slivers that a cut leaves where two outlines should have met


def repair_polygon(
    shell: NDArray[np.float64], holes: Sequence[NDArray[np.float64]] = ()
) -> tuple[Any, bool]:
    """Make the area that an outline encloses, even where its pen crossed itself.

    Everything that the line goes around is kept: both lobes of a bow-tie, once what is gone around
    twice.

    Parameters
    ----------
    shell : (n >= 3, 2), level-0 px
        Vertices (x, y); closed if the last does not repeat the first.
    holes : each (n >= 3, 2), level-0 px
        Outlines of what is cut out.

    Returns
    -------
    area : shapely MultiPolygon
        Valid; empty if the outline encloses nothing (a point, a line there and back).
    repaired : bool
        Whether the outline crossed itself.

    Examples
    --------
    >>> area, repaired = repair_polygon(np.array([[0, 0], [10, 10], [10, 0], [0, 10]], float))
    >>> area.area, repaired
    (50.0, True)
    """
    drawn = shapely.Polygon(shell, holes)
    if drawn.is_valid:
        return shapely.MultiPolygon([drawn]), False
    area = _encircled_area(shell)
    if holes:
        area = shapely.difference(area, shapely.union_all([_encircled_area(h) for h in holes]))
    parts = polygons_of(area)
    return shapely.MultiPolygon(parts), bool(parts)


def _encircled_area(outline: NDArray[np.float64]) -> Any:
    """Unite the faces that an outline goes around: non-zero winding.

    `shapely.make_valid` will not do: by "linework" it cuts out what is gone around twice, and by
    "structure" it loses lobes where an outline runs along itself.
    """
    lines = shapely.unary_union(shapely.LinearRing(outline))
    faces = [
        face
        for face in shapely.get_parts(shapely.polygonize([lines]))
        if _winding_number(outline, *shapely.get_coordinates(shapely.point_on_surface(face))[0])
    ]
    return shapely.union_all(faces)


def _winding_number(outline: NDArray[np.float64], x: float, y: float) -> int:
    """How often a closed outline goes around a point: edges across the ray to its right."""
    x0, y0 = outline.T - np.array([[x], [y]])
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    side = x0 * y1 - x1 * y0  # > 0: the point is left of the edge
    upward = (y0 <= 0) & (y1 > 0) & (side > 0)
    downward = (y0 > 0) & (y1 <= 0) & (side < 0)
    return int(np.count_nonzero(upward)) - int(np.count_nonzero(downward))


def assemble_annotation(
    tumours: Sequence[Any],
    exclusions: Sequence[Any],
    *,
    notes: Sequence[str] = (),
    drawn: Sequence[tuple[str, tuple[float, float, float, float]]] = (),
) -> Annotation:
    """Unite tumours, cut exclusions out, and separate the lesions.

    Parameters
    ----------
    tumours, exclusions : valid shapely areas, level-0 px
    notes : sentences to pass on
    drawn : (name, bounding box) of each tumour polygon, to pass on

    Returns
    -------
    annotation : Annotation
        `lesions` from top to bottom, then left to right (by the corner of their bounding boxes).
    """
    area = shapely.union_all(list(tumours))
    if exclusions:
        area = shapely.difference(area, shapely.union_all(list(exclusions)))
    parts = [part for part in polygons_of(area) if part.area >= MIN_AREA_L0]
    covered = ("exclusions cover all of the tumour: none is left",)
    return Annotation(
        tumour=shapely.MultiPolygon(parts),
        lesions=_group_touching(parts),
        notes=(*notes, *(covered if tumours and not parts else ())),
        drawn=tuple(drawn),
    )


def polygons_of(area: Any) -> list[Any]:
    """List the polygons in any shapely geometry, leaving out lines and points."""
    if area.geom_type == "Polygon":
        return [] if area.is_empty else [area]
    return [polygon for part in getattr(area, "geoms", ()) for polygon in polygons_of(part)]


def _group_touching(parts: list[Any]) -> tuple[Any, ...]:
    """Join parts that share an edge or a point; where only points join them: a MultiPolygon."""
    if not parts:
        return ()
    near = shapely.STRtree(parts).query(parts, predicate="dwithin", distance=TOUCH_L0)
    first = connect(len(parts), *near.astype(np.int64))
    groups = [[parts[i] for i in np.flatnonzero(first == group)] for group in np.unique(first)]
    lesions = [group[0] if len(group) == 1 else shapely.MultiPolygon(group) for group in groups]
    return tuple(sorted(lesions, key=_reading_order))


def _reading_order(lesion: Any) -> tuple[float, ...]:
    min_x, min_y, max_x, max_y = lesion.bounds
    return (min_y, min_x, max_y, max_x, lesion.area)
