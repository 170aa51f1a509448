"""Lesions of a slide, as CAMELYON16 counts them: a label image on a coarse grid.

From the reference, sampled at a downsample: grow by 37.5 µm, so that annotations closer than about
75 µm merge; fill holes; label with 8-connectivity; find isolated tumour cells (ITC) by the major
axis of the label. Pure: nothing here opens a file.

The published method runs a distance transform over the whole slide. Growth, holes and labels only
depend on what is near, so here they run on windows around what belongs together, with the same
answer: windows that could touch are merged first.

References
----------
.. [1] B. Ehteshami Bejnordi et al., "Diagnostic assessment of deep learning algorithms for
   detection of lymph node metastases in women with breast cancer", JAMA 2017;318:2199-2210, and
   the challenge's published evaluation rules.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.measure import regionprops

from tiling.annotation.raster import Box, rasterise
from wsi_pipeline.errors import EvaluationError, ExtentError

MERGE_UM = 75.0  # annotations closer than this are one lesion (CAMELYON16)
ITC_UM = 200.0 + 75.0  # shorter labels are ITC: 200 µm, and the growth on both sides (CAMELYON16)
DOWNSAMPLE = 32.0  # level 5 of a CAMELYON16 mask
CAMELYON16_MPP = 0.243  # µm per level-0 px that CAMELYON16 reckons with on every slide

# Grid pixels that polygons may cover with their surroundings: 262,144 x 262,144 level-0 px at
# downsample 32, more than any slide has. Labelling them takes about 1.2 GB.
MAX_GRID_PX = 2**26

_BLOCK_PX = 64  # side of the blocks in which tumour is located on a mask
_EIGHT = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class LesionWindow:
    """A part of the label image that holds labels."""

    row: int  # of its first pixel on the grid
    col: int
    labels: NDArray[np.int32]  # (h, w) 0 = none, else 1 + index into the lesions


@dataclass(frozen=True)
class LesionReference:
    """The lesions of one slide, numbered by their first pixel, row by row."""

    downsample: float  # level-0 px per grid pixel
    mpp: float  # µm per level-0 px
    size: tuple[float, float] | None  # (width, height) level-0 px of the slide; None: not known
    has_tumour: bool  # False: a normal slide
    windows: tuple[LesionWindow, ...]
    major_axis_um: NDArray[np.float64]  # (n,) of the ellipse, growth included
    area_um2: NDArray[np.float64]  # (n,) growth included
    centre: NDArray[np.float64]  # (n, 2) x, y, level-0 px
    is_itc: NDArray[np.bool_]  # (n,) True: left out of the count

    @property
    def n_lesions(self) -> int:
        """How many labels are no ITC."""
        return int(np.count_nonzero(~self.is_itc))

    @property
    def n_itc(self) -> int:
        """How many labels are ITC."""
        return int(np.count_nonzero(self.is_itc))

    def label_at(self, x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.int64]:
        """Look up the label under points.

        Parameters
        ----------
        x, y : (n,), level-0 px

        Returns
        -------
        label : (n,) int64
            0 = none, also where nothing is known; else 1 + index into the lesions.
        """
        row = np.floor(y / self.downsample).astype(np.int64)
        col = np.floor(x / self.downsample).astype(np.int64)
        label = np.zeros(row.shape, dtype=np.int64)
        for window in self.windows:
            height, width = window.labels.shape
            r, c = row - window.row, col - window.col
            here = (r >= 0) & (r < height) & (c >= 0) & (c < width)
            # Windows are disjoint: each point is in one at most.
            label[here] = window.labels[r[here], c[here]]
        return label


def label_mask(
    tumour: NDArray[np.bool_],
    *,
    downsample: float,
    mpp: float,
    size: tuple[float, float] | None = None,
) -> LesionReference:
    """Find the lesions on a mask.

    Parameters
    ----------
    tumour : (H, W) bool
        Sampled at `downsample`.
    downsample : level-0 px per mask pixel
    mpp : µm per level-0 px
    size : (width, height), level-0 px, optional
        Default: what the mask covers.

    Raises
    ------
    EvaluationError
        If `downsample` or `mpp` is not positive.
    """
    radius = growth_radius(downsample=downsample, mpp=mpp)
    height, width = tumour.shape
    parts = [
        (box, tumour[box.row : box.row + box.height, box.col : box.col + box.width])
        for box in _windows(_mask_boxes(tumour), radius=radius, limit=(height, width))
    ]
    size = (width * downsample, height * downsample) if size is None else size
    return _label_windows(parts, radius=radius, downsample=downsample, mpp=mpp, size=size)


def label_polygons(
    tumour: Any,
    *,
    mpp: float,
    downsample: float = DOWNSAMPLE,
    slide_size: tuple[int, int] | None = None,
) -> LesionReference:
    """Find the lesions among polygons, drawn at the evaluation's downsample only.

    What is outside the slide is not drawn, so that a polygon far larger than the slide costs what
    the slide does.

    Parameters
    ----------
    tumour : shapely MultiPolygon, level-0 px
        Valid; exclusions and holes cut out already (`Annotation.tumour`).
    mpp : µm per level-0 px
    downsample : level-0 px per grid pixel
    slide_size : (width, height), level-0 px, optional
        Where not known, the grid ends where the growth of the last polygon does.

    Raises
    ------
    EvaluationError
        If `downsample` or `mpp` is not positive.
    ExtentError
        If the polygons cover more than `MAX_GRID_PX` pixels of the grid.
    """
    radius = growth_radius(downsample=downsample, mpp=mpp)
    polygons = shapely.get_parts(tumour)
    polygons = polygons[~shapely.is_empty(polygons)]
    limit = None
    if slide_size is not None:
        limit = (math.ceil(slide_size[1] / downsample), math.ceil(slide_size[0] / downsample))
    parts = []
    boxes = _enclose(polygons, downsample, limit)
    windows = list(_windows(boxes, radius=radius, limit=limit))
    _check_extent(sum(box.height * box.width for box in windows), downsample)
    tree = shapely.STRtree(polygons)
    for box in windows:
        corners = np.array([box.col, box.row, box.col + box.width, box.row + box.height])
        here = polygons[np.sort(tree.query(shapely.box(*(corners * downsample))))]
        parts.append((box, rasterise(here, box=box, downsample=downsample)))
    return _label_windows(parts, radius=radius, downsample=downsample, mpp=mpp, size=slide_size)


def _enclose(
    polygons: NDArray[Any], downsample: float, limit: tuple[int, int] | None
) -> NDArray[np.int64]:
    """Enclose polygons on the grid: (n, 4) first row and column, last row and column + 1."""
    bounds = np.floor(shapely.bounds(polygons).reshape(-1, 4)[:, [1, 0, 3, 2]] / downsample)
    bounds[:, 2:] += 1
    if limit is not None:
        bounds = np.clip(bounds, 0, np.array([*limit, *limit], dtype=np.float64))
    extents = np.maximum(bounds[:, 2:], 0) - np.maximum(bounds[:, :2], 0)
    _check_extent(float(extents.prod(axis=1).max(initial=0)), downsample)
    boxes: NDArray[np.int64] = bounds.astype(np.int64)
    return boxes


def _check_extent(n_px: float, downsample: float) -> None:
    if n_px > MAX_GRID_PX:
        raise ExtentError(
            f"its polygons cover {n_px:.3g} pixels at downsample {downsample:g}, more than can be "
            f"drawn ({MAX_GRID_PX:.3g})"
        )


def no_lesions(
    *, mpp: float, downsample: float = DOWNSAMPLE, size: tuple[float, float] | None = None
) -> LesionReference:
    """State that a slide is normal."""
    return _label_windows([], radius=1.0, downsample=downsample, mpp=mpp, size=size)


def growth_radius(*, downsample: float, mpp: float) -> float:
    """Distance to tumour below which a pixel belongs to it, in grid pixels (strictly less).

    Examples
    --------
    >>> round(growth_radius(downsample=32, mpp=0.243), 4)
    4.8225
    """
    if not (downsample > 0 and mpp > 0 and math.isfinite(downsample) and math.isfinite(mpp)):
        raise EvaluationError(
            "downsample and µm per pixel must be positive numbers, "
            f"got downsample {downsample} and {mpp} µm per pixel"
        )
    return MERGE_UM / (mpp * downsample * 2)


def grow(mask: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    """Add every pixel whose Euclidean distance to the mask is less than `radius` pixels.

    The same answer as a distance transform, by shifting rows: a disc is a stack of runs.

    Examples
    --------
    >>> grow(np.array([[0, 0, 1, 0, 0]], dtype=bool), 1.5).astype(int).tolist()
    [[0, 1, 1, 1, 0]]
    """
    height = mask.shape[0]
    grown = np.zeros_like(mask)
    wide = mask.copy()  # the mask with `half` pixels added on both sides of each run
    half = 0
    for shift in range(math.ceil(radius) - 1, -1, -1):
        # Rows nearer to the centre of the disc are wider, so `wide` only ever grows.
        while math.sqrt(shift**2 + (half + 1) ** 2) < radius:
            half += 1
            wide[:, half:] |= mask[:, :-half]
            wide[:, :-half] |= mask[:, half:]
        if shift < height:
            grown[shift:] |= wide[: height - shift]
            grown[: height - shift] |= wide[shift:]
    return grown


def fill_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill the background that no path of edge neighbours joins to the border of the array."""
    background, n = ndimage.label(~mask)
    hole = np.ones(n + 1, dtype=bool)
    for edge in (background[0], background[-1], background[:, 0], background[:, -1]):
        hole[edge] = False
    hole[0] = False
    filled: NDArray[np.bool_] = mask | hole[background]
    return filled


# ------------------------------------------------------------ windows


def _mask_boxes(tumour: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Enclose the tumour of a mask: (n, 4) first row and column, last row and column + 1."""
    height, width = tumour.shape
    if not tumour.size:
        return np.zeros((0, 4), dtype=np.int64)
    blocks = np.logical_or.reduceat(tumour, np.arange(0, height, _BLOCK_PX), axis=0)
    blocks = np.logical_or.reduceat(blocks, np.arange(0, width, _BLOCK_PX), axis=1)
    found = ndimage.find_objects(ndimage.label(blocks, structure=_EIGHT)[0])
    boxes = [(r.start, c.start, r.stop, c.stop) for r, c in found]
    return np.array(boxes, dtype=np.int64).reshape(-1, 4) * _BLOCK_PX


def _windows(
    boxes: NDArray[np.int64], *, radius: float, limit: tuple[int, int] | None
) -> Iterator[Box]:
    """Turn boxes around tumour into disjoint windows, each with all that can reach into it.

    A window leaves room for the growth and a ring of background, so that whatever grows together
    or encloses a hole does so inside one window.

    Parameters
    ----------
    boxes : (n, 4)
        First row, first column, last row + 1, last column + 1.
    limit : (rows, columns) of the grid, or None where it has no known end
    """
    margin = math.ceil(radius) + 1
    boxes = _merge_boxes(boxes + np.array([-margin, -margin, margin, margin]))
    boxes = np.maximum(boxes, 0)
    if limit is not None:
        boxes = np.minimum(boxes, np.array([*limit, *limit]))
    for row, col, last_row, last_col in boxes.tolist():
        if last_row > row and last_col > col:
            yield Box(row, col, last_row - row, last_col - col)


def _merge_boxes(boxes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join boxes that touch into the box around them, until none touch."""
    while True:
        shapes = shapely.box(boxes[:, 1], boxes[:, 0], boxes[:, 3], boxes[:, 2])
        a, b = shapely.STRtree(shapes).query(shapes, predicate="intersects")
        touching = coo_array((np.ones(a.size, dtype=bool), (a, b)), shape=(len(boxes),) * 2)
        n, group = connected_components(touching, directed=False) if len(boxes) else (0, a)
        if n == len(boxes):
            return boxes
        merged = np.empty((n, 4), dtype=np.int64)
        merged[:, :2] = np.iinfo(np.int64).max
        merged[:, 2:] = np.iinfo(np.int64).min
        np.minimum.at(merged[:, :2], group, boxes[:, :2])
        np.maximum.at(merged[:, 2:], group, boxes[:, 2:])
        boxes = merged


# ------------------------------------------------------------ labels


@dataclass(frozen=True)
class _Label:
    """One label of one window, as `regionprops` measures it."""

    first: tuple[int, int]  # row, column of its first pixel on the grid
    window: int
    label: int  # in its window
    axis_px: float
    area_px: float
    centre_px: tuple[float, float]  # row, column


def _label_windows(
    parts: Iterable[tuple[Box, NDArray[np.bool_]]],
    *,
    radius: float,
    downsample: float,
    mpp: float,
    size: tuple[float, float] | None,
) -> LesionReference:
    windows: list[LesionWindow] = []
    found: list[_Label] = []
    for box, tumour in parts:
        if not tumour.any():
            continue
        labels = np.empty(tumour.shape, dtype=np.int32)
        ndimage.label(fill_holes(grow(tumour, radius)), structure=_EIGHT, output=labels)
        found += _measure(labels, box, len(windows))
        windows.append(LesionWindow(box.row, box.col, labels))
    found.sort(key=lambda label: label.first)
    _renumber(windows, found)
    pixel_um = downsample * mpp
    axis_px = np.array([label.axis_px for label in found], dtype=np.float64)
    centre_px = np.array([label.centre_px for label in found], dtype=np.float64).reshape(-1, 2)
    return LesionReference(
        downsample=downsample,
        mpp=mpp,
        size=size,
        has_tumour=bool(found),
        windows=tuple(windows),
        major_axis_um=axis_px * pixel_um,
        area_um2=np.array([label.area_px for label in found], dtype=np.float64) * pixel_um**2,
        centre=(centre_px[:, ::-1] + 0.5) * downsample,
        is_itc=axis_px < ITC_UM / pixel_um,
    )


def _measure(labels: NDArray[np.int32], box: Box, window: int) -> Iterator[_Label]:
    for region in regionprops(labels):  # type: ignore[no-untyped-call]
        row, col = region.bbox[:2]
        # Means of rows and columns; `region.centroid` lists all pixels first, 16 bytes for each.
        in_row, in_col = (np.count_nonzero(region.image, axis=axis) for axis in (1, 0))
        centre_row, centre_col = (
            float(n @ np.arange(n.size) / region.area) for n in (in_row, in_col)
        )
        yield _Label(
            first=(box.row + row, box.col + col + int(region.image[0].argmax())),
            window=window,
            label=region.label,
            axis_px=float(region.axis_major_length),
            area_px=float(region.area),
            centre_px=(box.row + row + centre_row, box.col + col + centre_col),
        )


def _renumber(windows: list[LesionWindow], found: list[_Label]) -> None:
    """Return each label its place in `found`, in place."""
    n_labels = np.bincount([label.window for label in found], minlength=len(windows))
    new = [np.zeros(1 + n, np.int32) for n in n_labels]
    for number, label in enumerate(found, start=1):
        new[label.window][label.label] = number
    for window, numbers in zip(windows, new, strict=True):
        np.take(numbers, window.labels, out=window.labels)
