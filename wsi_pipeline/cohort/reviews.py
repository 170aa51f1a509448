"""What the marks of a review (``RUN/review/<slide_id>.geojson``) mean for labels.

A mark states what its area is (`truth`: tumour or normal), or that the reviewer cannot tell (the
verdict ``unsure``). One that is right or wrong without a truth changes no label. Where marks
overlap, the latest is valid. A mark of a patch is about the label of the patch: where that is what
the mark states already, the annotation stays as it is.

QuPath may have saved the file since: a class that was changed between right and wrong turns the
truth around, and annotations drawn there count if their class means tumour, or is ``normal``.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray

from tiling.annotation.formats.drawing import Drawing, meaning_of_name
from tiling.annotation.formats.geojson import (
    find_class,
    list_features,
    list_polygons,
    object_kind,
)
from tiling.annotation.formats.text import parse_json, read_bytes
from tiling.annotation.labels import label_tiles
from tiling.contracts import Annotation, PatchLabels, TileConfig
from tiling.errors import AnnotationError
from tiling.geometry import inner_squares
from tiling.polygons import MIN_AREA_L0, assemble_annotation, polygons_of
from wsi_pipeline.errors import ReviewError

if TYPE_CHECKING:
    from tiling.store import PatchStore

# confirmed: the label of its patch is right; "": it is not known what the area is
State = Literal["tumour", "normal", "unsure", "confirmed", ""]

VERDICTS = ("right", "wrong", "unsure")  # of a model's score, or of what is drawn
TRUTHS = ("tumour", "normal")
_STATES = ("tumour", "normal", "unsure")

_LATEST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Mark:
    """One mark of a review."""

    area: Any  # shapely MultiPolygon, level-0 px, valid
    state: State
    time: datetime = _LATEST  # of a mark without a time, as QuPath draws them
    verdict: str = ""  # one of `VERDICTS`; empty: drawn in QuPath
    row: int | None = None  # of the patch that was marked


@dataclass(frozen=True)
class Corrections:
    """What the marks of one slide change; the areas do not overlap."""

    tumour: Any  # shapely MultiPolygon, level-0 px, valid, maybe empty
    normal: Any
    unsure: Any
    n_marks: int  # with a meaning
    n_without_truth: int  # right or wrong, but not stated what it is


def read_marks(path: Path) -> list[Mark]:
    """Read the marks of a slide, in the order of the file.

    Raises
    ------
    ReviewError
        If the file is damaged.
    """
    try:
        content, _ = parse_json(read_bytes(path))
        return [mark for feature in list_features(content) for mark in _read_feature(feature)]
    except (AnnotationError, RecursionError) as error:
        raise ReviewError(
            f"review/{path.name}: {error}; correct it, export it from QuPath again, or move it away"
        ) from error


def _read_feature(feature: dict[str, Any]) -> Iterator[Mark]:
    properties = feature.get("properties") or {}
    if not isinstance(properties, dict):
        raise AnnotationError("the properties of a mark must be an object")
    if object_kind(feature, properties) != "annotation":
        return
    metadata = properties.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    name = find_class(properties).casefold()
    drawing = Drawing()  # repairs as annotations are repaired; its notes are not needed
    title = str(properties.get("name") or name or "mark")
    rings = list_polygons(feature.get("geometry"), title, drawing)
    parts = [drawing.build_area(title, of_polygon) for of_polygon in rings]
    area = _unite(part for part in parts if part is not None)
    if not area.is_empty:
        row = str(metadata.get("row", ""))
        yield Mark(
            area,
            _find_state(name, metadata),
            _parse_time(metadata.get("time")),
            verdict=name if name in VERDICTS else "",
            row=int(row) if row.isascii() and row.isdigit() and len(row) < 19 else None,
        )


def _find_state(name: str, metadata: dict[str, Any]) -> State:
    """Find out what a mark states, from its class in lower case and its metadata."""
    if name == "unsure":
        return "unsure"
    if name not in VERDICTS:
        if name == "normal":
            return "normal"
        return "tumour" if name and meaning_of_name(name) == "tumour" else ""
    truth = metadata.get("truth")
    if truth not in TRUTHS:
        return ""
    # In the viewer, the verdict and the truth are written together.
    was_turned = {name, str(metadata.get("verdict", name))} == {"right", "wrong"}
    is_tumour = (truth == "tumour") != was_turned
    return "tumour" if is_tumour else "normal"


def _parse_time(text: Any) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return _LATEST
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def read_corrections(
    path: Path, store: "PatchStore", *, slide_label: int | None, annotation: Annotation | None
) -> Corrections:
    """Read what the review of a slide changes in what is known of it.

    Raises
    ------
    ReviewError
        If the file is damaged.
    """
    marks = read_marks(path)
    if annotation is not None:
        label = _label_by(store, annotation).label
    else:
        label = np.full(len(store.coords), 0 if slide_label == 0 else -1, np.int8)
    return resolve_marks(confirm_marks(marks, store, label))


def confirm_marks(
    marks: Sequence[Mark], store: "PatchStore", label: NDArray[np.int8]
) -> list[Mark]:
    """Find the marks of patches whose label, (N,), is right.

    A mark that was moved or reshaped since is one of a region.
    """
    geometry = store.geometry
    sides = np.array([geometry.patch_l0, geometry.patch_l0_y])

    def is_confirmed(mark: Mark) -> bool:
        if mark.row is None or mark.row >= len(label):
            return False
        if label[mark.row] != {"tumour": 1, "normal": 0}.get(mark.state, -2):
            return False
        corner = store.coords[mark.row]
        far = np.minimum(corner + sides, store.info.size)  # marks end with the slide
        return bool(shapely.equals(mark.area, shapely.box(*corner, *far)))

    return [replace(mark, state="confirmed") if is_confirmed(mark) else mark for mark in marks]


def resolve_marks(marks: Sequence[Mark]) -> Corrections:
    """Unite marks of one meaning; where marks of different meanings overlap, the latest is valid.

    Of equally late ones, the last in the sequence.
    """
    known = [mark for mark in marks if mark.state]
    areas = _resolve(known, [mark.state for mark in known])
    found = {state: areas.get(state, shapely.MultiPolygon()) for state in _STATES}
    return Corrections(**found, n_marks=len(known), n_without_truth=len(marks) - len(known))


def _resolve(marks: Sequence[Mark], keys: Sequence[str]) -> dict[str, Any]:
    """Unite marks by key, less what later marks of other keys cover."""
    order = sorted(range(len(marks)), key=lambda number: marks[number].time)
    drawn = np.array([marks[number].area for number in order], dtype=object)
    key = np.array([keys[number] for number in order], dtype=object)
    areas = drawn.copy()
    if len(marks):
        first, second = shapely.STRtree(drawn).query(drawn, predicate="intersects")
        covers = (second > first) & (key[first] != key[second])
        first, second = first[covers], second[covers]
        by_first = np.argsort(first, kind="stable")
        covered, starts = np.unique(first[by_first], return_index=True)
        for row, later in zip(covered, np.split(second[by_first], starts[1:]), strict=False):
            areas[row] = shapely.difference(drawn[row], shapely.union_all(drawn[later]))
    return {name: _unite(areas[key == name]) for name in set(keys)}


def correct_annotation(annotation: Annotation | None, corrections: Corrections) -> Annotation:
    """Add the area that is tumour to an annotation, and cut the normal area out.

    Parameters
    ----------
    annotation : Annotation or None
        None: of a slide without any tumour.
    corrections : Corrections

    Returns
    -------
    annotation : Annotation
        Lesions are numbered anew, from top to bottom.
    """
    tumours = [] if annotation is None else [annotation.tumour]
    notes = () if annotation is None else annotation.notes
    return assemble_annotation([*tumours, corrections.tumour], [corrections.normal], notes=notes)


def is_corrected(annotation: Annotation | None, corrections: Corrections) -> bool:
    """Whether marks add area to the tumour of an annotation, or take some away."""
    return any(area > 0 for area in measure_corrections(annotation, corrections))


def measure_corrections(
    annotation: Annotation | None, corrections: Corrections
) -> tuple[float, float]:
    """Measure the tumour that marks add, and that they take away, level-0 px²."""
    tumour = shapely.MultiPolygon() if annotation is None else annotation.tumour
    added = shapely.difference(corrections.tumour, tumour).area
    removed = shapely.intersection(corrections.normal, tumour).area
    return _without_rounding(added), _without_rounding(removed)


def _without_rounding(area: float) -> float:
    return area if area >= MIN_AREA_L0 else 0.0


@dataclass(frozen=True)
class ReviewedLabels:
    """What is known of a slide once its review is taken into account."""

    slide_label: int | None  # 1 tumour, 0 normal
    annotation: Annotation | None
    patch_labels: NDArray[np.int8]  # (N,) 1, 0, -1
    lesion_pairs: NDArray[np.int64]  # (M, 2) patch, index into lesion_ids
    lesion_ids: Sequence[str]


def correct_labels(
    store: "PatchStore",
    *,
    slide_label: int | None,
    annotation: Annotation | None,
    corrections: Corrections,
) -> ReviewedLabels:
    """Correct the labels of a slide and of its patches, by the rule that the store was labelled by.

    A patch whose inner square shares an area with an unsure region gets -1. On a slide of which
    neither an annotation is known nor that it is normal, only patches with the whole inner square
    in reviewed regions get a label.
    """
    squares = inner_squares(store.coords, store.geometry)
    label, pairs, ids = store.label, store.lesion_pairs, store.lesion_ids
    if annotation is None and slide_label != 0:
        found = _label_by(store, correct_annotation(None, corrections)).label
        reviewed = shapely.union_all([corrections.tumour, corrections.normal])
        label = np.where(shapely.covers(reviewed, shapely.box(*squares.T)), found, label)
    elif is_corrected(annotation, corrections):
        annotation = correct_annotation(annotation, corrections)
        corrected = _label_by(store, annotation)
        label, pairs = corrected.label, corrected.lesion_pairs
        ids = [str(number + 1) for number in range(len(annotation.lesions))]
        slide_label = None if slide_label is None else int(bool(annotation.lesions))
    if not corrections.unsure.is_empty:
        label = np.where(_overlaps(squares, corrections.unsure), np.int8(-1), label)
    return ReviewedLabels(slide_label, annotation, label, pairs, ids)


def find_hard_patches(store: "PatchStore", marks: Sequence[Mark]) -> NDArray[np.bool_]:
    """Find the labelled patches that a model had wrong, by the verdicts of a review.

    These are the patches whose inner square shares an area with a mark that is ``wrong``, and that
    no later verdict covers. One whose label is not what the reviewer says is left out: its label is
    wrong, not the model.

    Returns
    -------
    hard : (N,) bool
    """
    judged = [mark for mark in marks if mark.verdict]
    areas = _resolve(judged, [m.state or "any" if m.verdict == "wrong" else "" for m in judged])
    squares = inner_squares(store.coords, store.geometry)
    hard = np.zeros(len(squares), np.bool_)
    for state, labels in (("tumour", (1,)), ("normal", (0,)), ("any", (0, 1))):
        if state in areas:
            hard |= _overlaps(squares, areas[state]) & np.isin(store.label, labels)
    return hard


def _label_by(store: "PatchStore", annotation: Annotation) -> PatchLabels:
    rule = ("label_rule", "positive_fraction", "negative_fraction")
    config = TileConfig(**{name: store.tiling[name] for name in rule if name in store.tiling})
    return label_tiles(
        store.coords,
        geometry=store.geometry,
        annotation=annotation,
        slide_label=None,
        config=config,
    )


def _overlaps(squares: NDArray[np.float64], area: Any) -> NDArray[np.bool_]:
    """Find the squares that share an area with a region; (n,) bool."""
    from tiling.annotation.overlaps import measure_overlaps

    found = np.zeros(len(squares), np.bool_)
    found[measure_overlaps(squares, assemble_annotation([area], [])).tile] = True
    return found


def _unite(areas: Iterable[Any]) -> Any:
    return shapely.MultiPolygon(polygons_of(shapely.union_all(list(areas))))
