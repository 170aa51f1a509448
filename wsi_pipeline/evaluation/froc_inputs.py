"""Which detections and which reference belong to which slide, from folders and tables."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from tiling.annotation.formats import SUFFIXES as ANNOTATION_SUFFIXES
from tiling.readers.mask_picture import SUFFIXES as MASK_SUFFIXES
from tiling.wording import name_some, pluralize
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.detections import (
    DetectionFile,
    read_detection_file,
    read_detection_table,
)
from wsi_pipeline.evaluation.froc_folders import FolderFiles, list_files
from wsi_pipeline.evaluation.froc_lists import SlideList
from wsi_pipeline.evaluation.slide_names import SlideIndex, list_ids

# The longest first: ``x.ome.tif`` is the mask of x.
_REFERENCE_KINDS = (".ome.tif", ".ome.tiff", *MASK_SUFFIXES, *ANNOTATION_SUFFIXES)


@dataclass(frozen=True)
class SlideDetections:
    """The detections of all slides, and what they were read from."""

    by_slide: dict[str, DetectionFile]
    names: dict[str, str]  # slide_id -> how the file, or the row, names the slide
    folder: FolderFiles | None  # None: one file for all slides
    paths: list[Path]


@dataclass(frozen=True)
class SlideFiles:
    """The slides of an evaluation, and which files are theirs."""

    index: SlideIndex
    detections: SlideDetections
    references: dict[str, Path]
    unmatched: list[Path]  # references of slides that are not listed
    notes: list[str]


def find_slide_files(
    detections_path: Path, reference_path: Path, listed: SlideList | None
) -> SlideFiles:
    """Find the slides, and the detections and the reference of each.

    Parameters
    ----------
    detections_path : Path
        Folder with one CSV per slide, or one CSV for all slides.
    reference_path : Path
        Folder.
    listed : SlideList, optional
        Without it, the slides are those of the detections and those of the references together.

    Raises
    ------
    EvaluationError
        If files contradict each other or the list, two belong to one slide, or their names leave
        open which slides are the same.
    """
    folder = list_files(
        reference_path,
        _REFERENCE_KINDS,
        readable=".xml, .geojson, .json (also .gz), .tif and .png",
        is_reference=True,
    )
    index = listed.index if listed else SlideIndex()
    read = _read_table if detections_path.is_file() else _read_folder
    detections = read(detections_path, index, listed)
    references, unmatched = folder.by_slide(index, add_new=listed is None)
    if not index.slide_ids:
        raise EvaluationError(
            f"no slides: neither detections in {detections_path} nor references in {reference_path}"
        )
    notes = _unread_notes(folder, references, detections, index, listed)
    if listed is None:
        _refuse_unmatched(detections_path, detections, reference_path, references, unmatched)
    notes += _pairing_notes(detections, references, folder, listed)
    notes += _detection_notes(detections, index)
    if listed and unmatched:
        notes.append(
            f"{pluralize(len(unmatched), 'reference')} of slides that are not listed left out: "
            f"{name_some([path.name for path in unmatched])}"
        )
    return SlideFiles(index, detections, references, unmatched if listed else [], notes)


def _read_folder(path: Path, index: SlideIndex, listed: SlideList | None) -> SlideDetections:
    folder = list_files(path, (".csv",), readable=".csv", is_reference=False)
    paths, unmatched = folder.by_slide(index, add_new=listed is None)
    if listed and unmatched:
        _refuse_unlisted([file.name for file in unmatched], set(paths), path, listed)
    by_slide = {slide_id: read_detection_file(file) for slide_id, file in paths.items()}
    for slide_id, found in by_slide.items():
        for line, name in found.slides:
            if index.find(list_ids(name)) != slide_id:
                raise EvaluationError(
                    f"{found.path}, line {line}: a detection of slide '{name}' in the file of "
                    f"slide {slide_id}; if the file holds several slides, give the file itself "
                    "with --detections"
                )
    names = {slide_id: file.name[: -len(".csv")] for slide_id, file in paths.items()}
    return SlideDetections(by_slide, names, folder, sorted(paths.values()))


def _read_table(path: Path, index: SlideIndex, listed: SlideList | None) -> SlideDetections:
    table = read_detection_table(path)
    names: dict[str, str] = {}
    unlisted = []
    for name in table:
        ids = list_ids(name)
        slide_id = index.find(ids)
        if slide_id is None and listed is None:
            slide_id = ids[-1]
            index.add(slide_id, ids, name)
        if slide_id is None:
            unlisted.append(name)
        elif slide_id in names:
            raise EvaluationError(
                f"{path}: '{names[slide_id]}' and '{name}' name the same slide, {slide_id}; "
                "spell it in one way"
            )
        else:
            names[slide_id] = name
    if listed and unlisted:
        _refuse_unlisted(unlisted, set(names), path, listed)
    by_slide = {slide_id: table[name] for slide_id, name in names.items()}
    return SlideDetections(by_slide, names, None, [path])


def _refuse_unlisted(
    names: list[str], matched: Collection[str], path: Path, listed: SlideList
) -> None:
    without = [slide_id for slide_id in listed.slides if slide_id not in matched]
    missing = f"; listed but without detections: {name_some(without)}" if without else ""
    raise EvaluationError(
        f"{path}: detections of {pluralize(len(names), 'slide')} that {listed.path} does not "
        f"list: {name_some(names)}{missing}; list them, rename them or take them away"
    )


def _refuse_unmatched(
    detections_path: Path,
    detections: SlideDetections,
    reference_path: Path,
    references: Mapping[str, Path],
    unmatched: list[Path],
) -> None:
    """Refuse names that match nothing on both sides: they may well be the same slides."""
    ending = ".csv" if detections.folder else ""
    alone = [n + ending for slide_id, n in detections.names.items() if slide_id not in references]
    if alone and unmatched:
        raise EvaluationError(
            f"{pluralize(len(alone), 'slide')} in {detections_path} without a reference "
            f"({name_some(alone)}) and {pluralize(len(unmatched), 'reference')} in "
            f"{reference_path} without detections "
            f"({name_some([path.name for path in unmatched])}): are they the same slides? If so, "
            "name them alike; if not, list all slides with --slides (slide_id,label)"
        )


def _unread_notes(
    folder: FolderFiles,
    references: Mapping[str, Path],
    detections: SlideDetections,
    index: SlideIndex,
    listed: SlideList | None,
) -> list[str]:
    """Name what was not read; one folder may hold both detections and references."""
    read = {path.resolve() for path in (*references.values(), *detections.paths)}
    notes = folder.check_others(
        index,
        [
            slide_id
            for slide_id in index.slide_ids
            if slide_id not in references and not (listed and listed.slides[slide_id].label == 0)
        ],
        read,
    )
    if detections.folder:
        without = [s for s in index.slide_ids if s not in detections.by_slide]
        notes += detections.folder.check_others(index, without, read)
    return notes


def _pairing_notes(
    detections: SlideDetections,
    references: Mapping[str, Path],
    folder: FolderFiles,
    listed: SlideList | None,
) -> list[str]:
    """Name the slides that are not spelled in the same way everywhere."""
    stems = {path: name for name, path in folder.files}
    pairs = []
    for slide_id in {**detections.names, **references}:
        spelled = {slide_id: slide_id} if listed else {}
        if slide_id in detections.names:
            name = detections.names[slide_id]
            spelled[name] = f"{name}.csv" if detections.folder else name
        if slide_id in references:
            path = references[slide_id]
            spelled[stems[path]] = path.name
        if len(spelled) > 1:
            pairs.append(" = ".join(spelled.values()))
    if not pairs:
        return []
    return [
        f"{pluralize(len(pairs), 'slide')} matched despite different spelling: {name_some(pairs)}"
    ]


def _detection_notes(detections: SlideDetections, index: SlideIndex) -> list[str]:
    """Name slides without detections, and count positions that were rounded."""
    notes = []
    rounded = {slide_id: d.n_rounded for slide_id, d in detections.by_slide.items() if d.n_rounded}
    if rounded:
        notes.append(
            f"{pluralize(sum(rounded.values()), 'detection')} of "
            f"{pluralize(len(rounded), 'slide')} not at whole pixels, rounded to the nearest"
        )
    without = [slide_id for slide_id in index.slide_ids if slide_id not in detections.by_slide]
    if without:
        verb = "has" if len(without) == 1 else "have"
        what = "no CSV" if detections.folder else "no row"
        notes.append(
            f"{len(without)} of {pluralize(len(index.slide_ids), 'slide')} {verb} {what} and so "
            f"no detections: {name_some(without)}"
        )
    return notes
