"""Annotations as corrected by the review of a run, for the manifest of the next one.

The file of a slide holds the lesions of its annotation as they are, what the reviewers marked as
tumour, and, as exclusions, what they marked as normal.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import shapely

from tiling.annotation.slide_annotation import read_annotation_of_store
from tiling.contracts import Annotation
from tiling.errors import StoreError
from tiling.polygons import MIN_AREA_L0, polygons_of
from tiling.store import PatchStore
from tiling.wording import name_some, pluralize
from wsi_pipeline.cohort.manifest import read_run_manifest
from wsi_pipeline.cohort.reviews import (
    Corrections,
    correct_annotation,
    is_corrected,
    measure_corrections,
    read_corrections,
)
from wsi_pipeline.cohort.slides import open_store
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.errors import ManifestError, ReviewError
from wsi_pipeline.layout import RunFolder

_COLOURS = {"Tumor": (200, 0, 0), "Exclusion": (0, 120, 200)}  # QuPath's own for Tumor


@dataclass(frozen=True)
class Corrected:
    """A slide as its review corrects it."""

    entry: SlideEntry
    note: str = ""  # empty: there is no review
    geojson: dict[str, Any] | None = None  # of `entry.annotation`; None: it is not changed


def check_reviews(run: RunFolder, entries: Sequence[SlideEntry], folder: Path) -> None:
    """Refuse a run without reviews, and annotations that would be overwritten.

    Parameters
    ----------
    run : RunFolder
        Reviewed.
    entries : sequence of SlideEntry
    folder : Path
        Where the corrected annotations will be.

    Raises
    ------
    StageError
        If `run` is no run on slides.
    ManifestError
        If it has no reviews, or an annotation is in `folder`.
    """
    if not _reviewed(run):
        raise ManifestError(
            f"{run.path}: no slide has a review; mark patches with: wsi-pipeline view {run.path}"
        )
    for entry in entries:
        if entry.annotation and entry.annotation.resolve().parent == folder.resolve():
            raise ManifestError(
                f"{entry.annotation}: is in {folder.name}/, where the corrected annotations are "
                "written; write to another --csv, or give the manifest without the corrections"
            )


def correct_slides(
    run: RunFolder, entries: Sequence[SlideEntry], folder: Path
) -> tuple[list[Corrected], list[str]]:
    """Correct the annotations and labels of slides by the reviews of a run; nothing is written.

    Parameters
    ----------
    run, entries, folder
        As in `check_reviews`.

    Returns
    -------
    corrected : list of Corrected, as `entries`
    notes : list of str
        Reviews that are of no slide.

    Raises
    ------
    ReviewError, AnnotationError
        If a review or an annotation cannot be read.
    """
    corrected = [_correct(run, entry, folder) for entry in entries]
    others = set(_reviewed(run)) - {e.slide_id for e in entries}
    notes = [f"reviews of no slide here: {name_some(sorted(others))}"] if others else []
    return corrected, notes


def _reviewed(run: RunFolder) -> list[str]:
    return run.reviewed(e.slide_id for e in read_run_manifest(run))


def _correct(run: RunFolder, entry: SlideEntry, folder: Path) -> Corrected:
    path = run.review(entry.slide_id)
    if not path.is_file():
        return Corrected(entry)
    try:
        store = open_store(run, entry)
    except StoreError as error:
        raise ReviewError(f"review/{path.name}: {error}; the reviewed run must be tiled") from error
    drawn = entry.annotation
    annotation = None if drawn is None else read_annotation_of_store(drawn, store)
    corrections = read_corrections(path, store, slide_label=entry.label, annotation=annotation)
    marks = _describe_marks(corrections)
    if annotation is None and entry.label != 0:
        why = "the slide has neither an annotation nor label 0, so the rest of it is unknown"
        return Corrected(entry, f"{marks}: not used, as {why}")
    if not is_corrected(annotation, corrections):
        return Corrected(entry, f"{marks}: nothing to correct")
    lesions = correct_annotation(annotation, corrections).lesions
    now = replace(
        entry,
        label=int(bool(lesions)),
        annotation=folder / f"{entry.slide_id}.geojson",
        unclassified=None,  # everything in the file has a class
    )
    change = _describe_change(annotation, corrections, store.info.mpp, len(lesions))
    if now.label != entry.label:
        change += f", label {'' if entry.label is None else entry.label} -> {now.label}"
    return Corrected(now, f"{marks}: {change}", _as_geojson(annotation, corrections, store))


def _describe_marks(corrections: Corrections) -> str:
    text = pluralize(corrections.n_marks, "review mark")
    if corrections.n_without_truth:
        text += f" (and {corrections.n_without_truth} without a truth)"
    return text


def _describe_change(
    annotation: Annotation | None,
    corrections: Corrections,
    mpp: tuple[float, float],
    n_lesions: int,
) -> str:
    mm2 = mpp[0] * mpp[1] / 1e6
    added, removed = (area * mm2 for area in measure_corrections(annotation, corrections))
    parts = [f"{added:.3g} mm² of tumour added"] if added else []
    parts += [f"{removed:.3g} mm² removed"] if removed else []
    before = 0 if annotation is None else len(annotation.lesions)
    return f"{', '.join(parts)}, {before} -> {pluralize(n_lesions, 'lesion')}"


def _as_geojson(
    annotation: Annotation | None, corrections: Corrections, store: PatchStore
) -> dict[str, Any]:
    """Write a corrected annotation in the frame in which the run reads annotations."""
    bounds = store.info.bounds
    is_moved = bounds is not None and store.tiling.get("annotation_origin") == "bounds"
    corner = bounds[:2] if bounds is not None and is_moved else (0, 0)
    features = [
        {
            "type": "Feature",
            "geometry": shapely.geometry.mapping(
                shapely.transform(area, lambda points: points - corner)
            ),
            "properties": {
                "objectType": "annotation",
                "name": name,
                "classification": {"name": of_class, "color": _COLOURS[of_class]},
            },
        }
        for name, of_class, area in _list_areas(annotation, corrections)
    ]
    return {"type": "FeatureCollection", "features": features}


def _list_areas(
    annotation: Annotation | None, corrections: Corrections
) -> Iterator[tuple[str, str, Any]]:
    """List the lesions, then the reviewed areas that change something: name, class, area."""
    tumour = shapely.MultiPolygon() if annotation is None else annotation.tumour
    for number, lesion in enumerate(() if annotation is None else annotation.lesions, start=1):
        yield f"lesion {number}", "Tumor", lesion
    for area in polygons_of(corrections.tumour):
        if shapely.difference(area, tumour).area >= MIN_AREA_L0:
            yield "tumour by review", "Tumor", area
    for area in polygons_of(corrections.normal):
        if shapely.intersection(area, tumour).area >= MIN_AREA_L0:
            yield "normal by review", "Exclusion", area
