"""The reference of a slide, from a file beside others: polygons or a mask."""

from pathlib import Path

from tiling.annotations import read_annotation
from tiling.contracts import Annotation, Unclassified
from tiling.errors import AnnotationError
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

POLYGON_SUFFIXES = (".xml", ".geojson", ".json")
MASK_SUFFIXES = (".tif", ".tiff")


def find_references(folder: Path) -> dict[str, Path]:
    """List the reference files of a folder by slide_id; other files are passed over.

    Raises
    ------
    EvaluationError
        If the folder is missing, or a slide has two references.
    """
    found: dict[str, Path] = {}
    for path in list_folder(folder, (*POLYGON_SUFFIXES, *MASK_SUFFIXES)):
        other = found.setdefault(path.stem, path)
        if other is not path:
            raise EvaluationError(
                f"slide {path.stem} has two references, {other.name} and {path.name} in {folder}; "
                "keep the one that is true"
            )
    return found


def list_folder(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """List the files of a folder that have one of the suffixes, hidden ones left out.

    Raises
    ------
    EvaluationError
        If there is no such folder.
    """
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: no such folder")
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )


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
        The slide's label, if told.
    unclassified : ``auto``, ``tumour`` or ``region``
        What annotations without a class are; see `read_annotation`.

    Returns
    -------
    reference : LesionReference
    notes : sentences
        What was assumed, mended or left out.

    Raises
    ------
    EvaluationError
        Naming the file, what is wrong with it and the cure.
    """
    slide_mpp = CAMELYON16_MPP if mpp is None else mpp
    downsample = DOWNSAMPLE if mask_downsample is None else mask_downsample
    if path is None or _is_empty(path):
        return no_lesions(mpp=slide_mpp, downsample=downsample), ()
    if path.suffix.lower() in MASK_SUFFIXES:
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
    if path.stat().st_size > 1024:
        return False
    return not path.read_bytes().strip()
