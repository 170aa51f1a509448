"""The reference of a slide from a file: polygons or a mask."""

import gzip
import zlib
from pathlib import Path

from tiling.annotation.reading import read_annotation
from tiling.contracts import Annotation, Unclassified
from tiling.errors import AnnotationError
from tiling.files import read_bytes
from tiling.readers.mask_picture import SUFFIXES
from wsi_pipeline.errors import EvaluationError, ExtentError
from wsi_pipeline.evaluation.lesions import (
    CAMELYON16_MPP,
    DOWNSAMPLE,
    LesionReference,
    label_mask,
    label_polygons,
    no_lesions,
)
from wsi_pipeline.evaluation.masks import read_mask


def read_reference(
    path: Path | None,
    *,
    mask_downsample: float | None = None,
    mpp: float | None = None,
    tumour_value: int | None = None,
    label: int | None = None,
    unclassified: Unclassified = "auto",
) -> tuple[LesionReference, tuple[str, ...]]:
    """Read a slide's reference and find its lesions.

    Parameters
    ----------
    path : Path or None
        None, and a file without content, is a normal slide.
    mask_downsample : level-0 px per pixel, optional
        Where the evaluation samples; default: a mask's own, 32 for polygons.
    mpp : µm per level-0 px, optional
        Default: 0.243, as CAMELYON16 takes for every slide.
    tumour_value : int, optional
        See `read_mask`.
    label : int, optional
        The slide's label, if known.
    unclassified : ``auto``, ``tumour`` or ``region``
        What annotations without a class are; see `read_annotation`.

    Returns
    -------
    reference : LesionReference
    notes : sentences
        What was assumed, repaired or left out.

    Raises
    ------
    EvaluationError
        Naming the file, what is wrong with it and the remedy.
    """
    slide_mpp = CAMELYON16_MPP if mpp is None else mpp
    downsample = DOWNSAMPLE if mask_downsample is None else mask_downsample
    if path is None or _is_empty(path):
        return no_lesions(mpp=slide_mpp, downsample=downsample), ()
    if path.suffix.lower() in SUFFIXES:
        mask = read_mask(
            path, downsample=mask_downsample, mpp=mpp, tumour_value=tumour_value, label=label
        )
        found = label_mask(mask.tumour, downsample=mask.downsample, mpp=slide_mpp, size=mask.size)
        return found, mask.notes
    try:
        annotation = read_annotation(path, unclassified=unclassified)
    except AnnotationError as error:
        raise EvaluationError(f"{path.parent}: {error}") from error
    try:
        found = label_polygons(annotation.tumour, mpp=slide_mpp, downsample=downsample)
    except ExtentError as error:
        raise EvaluationError(f"{path}: {error}; {_describe_largest(annotation)}") from error
    return found, tuple(f"{path.name}: {note}" for note in annotation.notes)


def _describe_largest(annotation: Annotation) -> str:
    """Name the polygon with the largest bounding box, and the remedies."""

    def extent(drawn: tuple[str, tuple[float, float, float, float]]) -> float:
        x0, y0, x1, y1 = drawn[1]
        return (x1 - x0) * (y1 - y0)

    name, (x0, y0, x1, y1) = max(annotation.drawn, key=extent)
    return (
        f"the largest polygon, '{name}', spans x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f} "
        "level-0 px: correct its coordinates, or raise --mask-downsample"
    )


def _is_empty(path: Path) -> bool:
    """Whether a file holds nothing but blanks, packed or not."""
    if path.stat().st_size > 1024:
        return False
    data = read_bytes(path)
    if path.suffix.lower() == ".gz" and data:
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            return False  # damaged: reading it explains how
    return not data.removeprefix(b"\xef\xbb\xbf").strip()
