"""The annotation of one slide: read in the slide's frame, checked against it, described."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiling.contracts import Annotation, SlideInfo, TileConfig
from tiling.errors import AnnotationError
from tiling.store_files import TileTable
from tiling.wording import name_some, pluralize

if TYPE_CHECKING:
    from tiling.store import PatchStore


def read_slide_annotation(
    path: Path | None, info: SlideInfo, config: TileConfig
) -> tuple[Annotation | None, tuple[str, ...]]:
    """Read the annotation of a slide according to the settings.

    Parameters
    ----------
    path : Path or None
    info : SlideInfo
    config : TileConfig
        Its `annotation_origin`, `exclude` and `unclassified`.

    Returns
    -------
    annotation : Annotation in level-0 px of the whole slide, or None where there is no file
    notes : sentences

    Raises
    ------
    AnnotationError
        If the file cannot be read or does not belong to the slide.
    """
    if path is None:
        return None, ()
    from tiling.annotation.reading import check_annotation_fits, read_annotation

    annotation = read_annotation(
        path,
        origin=config.annotation_origin,
        bounds=info.bounds,
        exclude=config.exclude,
        unclassified=config.unclassified,
    )
    try:
        notes = check_annotation_fits(annotation, info.size)
    except AnnotationError as error:
        raise AnnotationError(f"{path.name}: {error}") from error
    return annotation, annotation.notes + notes + _frame_note(path, info, config)


def read_annotation_of_store(path: Path, store: "PatchStore") -> Annotation:
    """Read an annotation by the settings (frame, exclusions, ...) that a store was labelled by."""
    from tiling.annotation.reading import read_annotation

    return read_annotation(
        path,
        origin=store.tiling.get("annotation_origin", "level0"),
        bounds=store.info.bounds,
        exclude=store.tiling.get("exclude", ()),
        unclassified=store.tiling.get("unclassified", "auto"),
    )


def _frame_note(path: Path, info: SlideInfo, config: TileConfig) -> tuple[str, ...]:
    """Note the frame that was assumed for a QuPath file."""
    corner = None if info.bounds is None else info.bounds[:2]
    of_qupath = ".xml" not in (suffix.lower() for suffix in path.suffixes)
    if not corner or corner == (0, 0) or not of_qupath:
        return ()
    at = f"({corner[0]}, {corner[1]})"
    if config.annotation_origin == "bounds":
        return (f"outlines are counted from the corner of the slide's bounds, {at}",)
    return (
        f"outlines are counted from the slide's corner, though its bounds begin at {at}: QuPath "
        "counts from there by default; if it did, set tile.annotation_origin=bounds",
    )


def note_unhit_lesions(table: TileTable, annotation: Annotation | None) -> tuple[str, ...]:
    """Note the lesions that no patch's inner square meets."""
    if annotation is None:
        return ()
    hit = set(table.lesion_pairs[:, 1].tolist())
    missed = [str(index + 1) for index in range(len(annotation.lesions)) if index not in hit]
    if not missed:
        return ()
    of_all = f"{len(missed)} of {pluralize(len(annotation.lesions), 'lesion')}"
    verb = "meets" if len(missed) == 1 else "meet"
    return (f"{of_all} {verb} no patch's inner square ({name_some(missed)})",)


def describe_lesions(annotation: Annotation | None, info: SlideInfo) -> list[dict[str, Any]]:
    """List the lesions for a store's attributes."""
    lesions = () if annotation is None else annotation.lesions
    um2 = info.mpp[0] * info.mpp[1]
    return [
        {
            "id": str(number),
            "area_um2": float(lesion.area * um2),
            "centroid": [float(lesion.centroid.x), float(lesion.centroid.y)],  # level-0 px
            "bbox": [float(side) for side in lesion.bounds],  # x0, y0, x1, y1, level-0 px
        }
        for number, lesion in enumerate(lesions, start=1)
    ]
