"""Which tiles are tumour: squares against an annotation.

Pure geometry: nothing here opens a file or reads a pixel. Positions are (x, y) in level-0
pixels. A square is half-open, [x0, x1) x [y0, y1), so it intersects a lesion where they share an
area: to share an edge or a corner is not enough.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import Annotation, PatchLabels, TileConfig, TileGeometry
from tiling.errors import AnnotationError
from tiling.geometry import check_tile_config, inner_squares

if TYPE_CHECKING:
    from tiling.annotation.overlaps import Overlaps

# Shares are areas divided in float64: one that should equal a bound may miss it by rounding.
SHARE_TOLERANCE = 1e-9


def label_tiles(
    coords: NDArray[np.int64],
    *,
    geometry: TileGeometry,
    annotation: Annotation | None,
    slide_label: int | None,
    config: TileConfig,
) -> PatchLabels:
    """Label the tiles of one slide by their inner squares.

    Parameters
    ----------
    coords : (n_tiles, 2), level-0 px
        Top-left corners (x, y).
    geometry : TileGeometry
    annotation : Annotation or None
        If None, a slide of label 0 is negative everywhere, and any other is unlabelled (-1).
    slide_label : 1, 0 or None
        Whether the slide holds tumour, if known.
    config : TileConfig
        Its `label_rule`: ``inner``, 1 iff the inner square intersects the tumour; ``centre``, 1 iff
        the tumour covers the centre of the tile; ``fraction``, by the tumour's share of the inner
        square, 1 from `positive_fraction` up, 0 to `negative_fraction`, -1 between.

    Returns
    -------
    labels : PatchLabels
        Whatever the rule, `tumour` is the share of the inner square and `lesion_pairs` lists every
        lesion it intersects, by tile, then lesion.

    Raises
    ------
    AnnotationError
        If the slide's label and its annotation contradict each other.

    References
    ----------
    .. [1] The lecture: "a patch is positive iff its inner square intersects the annotation"; the
       side of the square is not given there, half the patch is our choice (docs/labels.md).
    """
    check_tile_config(config)
    _check_slide_label(slide_label, annotation)
    coords = np.asarray(coords, dtype=np.int64).reshape(-1, 2)
    if annotation is None:
        return _unannotated(len(coords), 0 if slide_label == 0 else -1)
    from tiling.annotation.overlaps import centres_covered, measure_overlaps

    squares = inner_squares(coords, geometry)
    overlaps = measure_overlaps(squares, annotation)
    tumour = _tumour_share(squares, overlaps)
    if config.label_rule == "inner":
        label = np.zeros(len(squares), np.int8)
        label[overlaps.tile] = 1
    elif config.label_rule == "centre":
        label = centres_covered(squares, annotation).astype(np.int8)
    else:
        label = _label_by_share(tumour, config)
    pairs = np.stack([overlaps.tile, overlaps.lesion], axis=1)
    return PatchLabels(label=label, tumour=tumour.astype(np.float32), lesion_pairs=pairs)


def _check_slide_label(slide_label: int | None, annotation: Annotation | None) -> None:
    if slide_label not in (0, 1, None):
        raise AnnotationError(
            f"a slide's label is 1 (tumour), 0 (normal) or empty, got {slide_label!r}"
        )
    if annotation is None or slide_label is None:
        return
    notes = f" (the file: {'; '.join(annotation.notes)})" if annotation.notes else ""
    if slide_label == 0 and annotation.lesions:
        raise AnnotationError(
            f"the slide is labelled 0 (normal), but its annotation holds {len(annotation.lesions)} "
            f"tumour area(s) of {annotation.tumour.area:.0f} level-0 px²{notes}; correct the "
            "manifest's label to 1, or give the annotation of this slide"
        )
    if slide_label == 1 and not annotation.lesions:
        raise AnnotationError(
            f"the slide is labelled 1 (tumour), but its annotation holds no tumour polygon{notes}; "
            "put the polygons into the group Tumor, correct the manifest's label, or leave its "
            "annotation column empty"
        )


def _unannotated(n_tiles: int, label: int) -> PatchLabels:
    return PatchLabels(
        label=np.full(n_tiles, label, np.int8),
        tumour=np.zeros(n_tiles, np.float32),
        lesion_pairs=np.empty((0, 2), np.int64),
    )


def _tumour_share(squares: NDArray[np.float64], overlaps: "Overlaps") -> NDArray[np.float64]:
    # Lesions never overlap each other: areas add up to that of their union.
    covered = np.bincount(overlaps.tile, weights=overlaps.area, minlength=len(squares))
    whole = (squares[:, 2] - squares[:, 0]) * (squares[:, 3] - squares[:, 1])
    return np.clip(covered / whole, 0.0, 1.0)


def _label_by_share(share: NDArray[np.float64], config: TileConfig) -> NDArray[np.int8]:
    label = np.full(len(share), -1, np.int8)
    label[share <= config.negative_fraction + SHARE_TOLERANCE] = 0
    label[share >= config.positive_fraction - SHARE_TOLERANCE] = 1
    return label
