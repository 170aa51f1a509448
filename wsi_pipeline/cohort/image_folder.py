"""Which images a data set has: class folders, or a table; nothing here reads pixels.

``FOLDER/<class>/*`` names the class by the folder; ``FOLDER/train/<class>/*`` (and val, test) the
split too. Images that lie in FOLDER itself are of no known class: to predict on. A table is a CSV
whose rows are the data set.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from tiling.same_content import find_same_content
from tiling.wording import name_some
from wsi_pipeline.cohort.manifest import IMAGE_SUFFIXES, check_entries, with_splits
from wsi_pipeline.cohort.patients import patient_finder
from wsi_pipeline.config.settings import ImagesConfig
from wsi_pipeline.contracts import SPLITS, SlideEntry, Split
from wsi_pipeline.csv_files import (
    as_mapping,
    check_spelling,
    describe_unused,
    iterate_csv,
    read_csv,
    update_csv,
)
from wsi_pipeline.errors import ManifestError
from wsi_pipeline.names import check_name, check_twins, find_text_problem, printable

log = logging.getLogger(__name__)

UNNAMED = ("0", "1")  # classes of unsorted images
COLUMNS = ("file", "class", "patient", "split", "mask")
ALL = "images"  # name of the unit of work that contains all images
_SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val"} | {
    "test": "test"
}


@dataclass(frozen=True)
class ImageEntry:
    """One image of a data set."""

    image_id: str  # its path within the folder, without the ending; / becomes __
    file: str  # its path within the folder
    class_name: str
    label: int  # 0 or 1; -1: its class is not known
    patient: str  # group for splits; default: the image_id
    split: Split | None = None
    mask: str | None = None  # path within the folder; non-zero is the object


def list_images(
    folder: Path, config: ImagesConfig, *, with_splits: bool = True
) -> tuple[list[ImageEntry], tuple[str, str]]:
    """List a data set's images, in the order of their ids (of the table's rows).

    Parameters
    ----------
    folder : Path
    config : ImagesConfig
    with_splits : bool
        False: splits of the table or the folders are neither read nor checked, for a caller that
        makes its own.

    Returns
    -------
    entries : list of ImageEntry
        Of the two classes, and those of unknown class (empty in a table).
    classes : (name of class 0, name of class 1)

    Raises
    ------
    ManifestError
        If there is no image, not two classes, two images with one id, a file that is not there,
        or a patient in two splits.
    """
    if not folder.is_dir():
        raise ManifestError(f"{folder}: no such folder of images")
    found = _read_table(folder, config.table, with_splits) if config.table else _walk(folder)
    if not with_splits:
        found = [replace(entry, split=None) for entry in found]
    if not found:
        raise ManifestError(
            f"{folder}: no images in it or its class folders (FOLDER/<class>/*; looked for "
            f"{', '.join(IMAGE_SUFFIXES)})"
        )
    if config.patient_pattern is not None:
        found = _name_patients(found, config.patient_pattern)
    classes = _choose_classes(folder, found, config.classes)
    labels = {name: label for label, name in enumerate(classes)} | {"": -1}
    entries = [
        replace(entry, label=labels[entry.class_name])
        for entry in found
        if entry.class_name in labels
    ]
    _check_names(folder, entries, classes)
    check_entries(as_slides(folder, entries))
    return entries, classes


def _check_names(folder: Path, entries: Sequence[ImageEntry], classes: tuple[str, str]) -> None:
    """Refuse images and classes whose names cannot be those of files, before any work is done."""
    for entry in entries:
        what, remedy = f"{folder}: the id of the image", "rename the file or its folder"
        check_name(entry.image_id, what, remedy=remedy, error=ManifestError)
        if entry.image_id == ALL:
            raise ManifestError(f"{what} cannot be '{ALL}', the name of all of them; {remedy}")
        reason = find_text_problem(entry.patient)
        if reason:
            shown = printable(entry.patient)
            raise ManifestError(f"{entry.file}: patient '{shown}' contains {reason}")
    for name in classes:
        check_name(name, f"{folder}: the name of a class,", error=ManifestError)
    check_twins(classes, f"{folder}: the classes", error=ManifestError)


def _walk(folder: Path) -> list[ImageEntry]:
    parents = [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    by_split = bool(parents) and all(p.name in _SPLIT_FOLDERS for p in parents)
    entries = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        wanted = path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
        if not wanted or any(p.startswith(".") for p in inside):
            continue
        split = _SPLIT_FOLDERS[inside[0]] if by_split and len(inside) > 1 else None
        folders = inside[1:-1] if by_split else inside[:-1]
        file = PurePosixPath(*inside).as_posix()
        entries.append(_entry(file, folders[0] if folders else "", split=split))
    return entries


def _entry(
    file: str,
    class_name: str,
    *,
    patient: str = "",
    split: str | None = None,
    mask: str | None = None,
) -> ImageEntry:
    image_id = PurePosixPath(file).with_suffix("").as_posix().replace("/", "__")
    known: Split | None = next((s for s in SPLITS if s == split), None)
    return ImageEntry(image_id, file, class_name, -1, patient or image_id, known, mask or None)


def _name_patients(entries: Sequence[ImageEntry], pattern: str) -> list[ImageEntry]:
    """Take the patients from the files' names, where no table names them."""
    find = patient_finder(pattern, option="images.patient_pattern")
    return [
        replace(entry, patient=find(PurePosixPath(entry.file).name))
        if entry.patient == entry.image_id
        else entry
        for entry in entries
    ]


def _read_table(folder: Path, path: Path, with_splits: bool) -> list[ImageEntry]:
    table = iterate_csv(path, error=ManifestError)
    _, names = next(table, (0, []))
    rows = [(line, as_mapping(names, cells)) for line, cells in table]
    if "file" not in names:
        raise ManifestError(
            f"{path}: no column 'file' in the header {list(names)}; known: {', '.join(COLUMNS)}"
        )
    check_spelling(path, names, COLUMNS, error=ManifestError)
    for line in describe_unused(path, names, COLUMNS):
        log.warning("%s", line)
    if not with_splits:
        rows = [(line, {**row, "split": ""}) for line, row in rows]
    return [_parse_row(folder, path, line, row) for line, row in rows]


def _parse_row(folder: Path, path: Path, line: int, row: Mapping[str, str]) -> ImageEntry:
    where = f"{path}, line {line}"
    text = {name: row.get(name, "").strip() for name in COLUMNS}
    if not text["file"]:
        raise ManifestError(f"{where}: file is a path within the folder, got ''")
    for name in ("file", "mask"):
        exact = row.get(name, "")  # spaces around a name are of the file if one is so named
        text[name] = exact if exact.strip() and (folder / exact).is_file() else text[name]
        inside = PurePosixPath(text[name])
        if inside.is_absolute() or ".." in inside.parts:
            raise ManifestError(f"{where}: {name} is a path within the folder, got '{inside}'")
        if text[name] and not (folder / inside).is_file():
            raise ManifestError(f"{where}: no such {name} in {folder.name}: {text[name]}")
    if text["split"] and text["split"] not in SPLITS:
        raise ManifestError(f"{where}: split '{text['split']}' is none of {', '.join(SPLITS)}")
    parts = PurePosixPath(text["file"]).parts
    # Without the column, the folder names the class, as it does without a table.
    class_name = text["class"] if "class" in row else (parts[-2] if len(parts) > 1 else "")
    return _entry(
        text["file"],
        class_name,
        patient=text["patient"],
        split=text["split"],
        mask=text["mask"],
    )


def _choose_classes(
    folder: Path, entries: Sequence[ImageEntry], wanted: tuple[str, str] | None
) -> tuple[str, str]:
    there = sorted({entry.class_name for entry in entries} - {""})
    if not there:  # nothing to learn from, but to predict on
        return wanted or UNNAMED
    if wanted is None:
        if len(there) != 2:
            raise ManifestError(
                f"{folder}: {len(there)} classes ({', '.join(there[:8])}"
                f"{', ...' if len(there) > 8 else ''}), but models need two; choose them "
                "with images.classes: [class_0, class_1]"
            )
        return there[0], there[1]
    others = [name for name in there if name not in wanted]
    missing = [name for name in wanted if name not in there]
    # One class may be absent from images to predict on; with others about, its name is mistyped.
    if wanted[0] == wanted[1] or len(missing) == 2 or (missing and others):
        raise ManifestError(
            f"{folder}: images.classes {list(wanted)} are not two of its classes: "
            f"{', '.join(there[:20])}"
        )
    return wanted


def as_slides(folder: Path, entries: Sequence[ImageEntry]) -> list[SlideEntry]:
    """See images as one-image slides: what splits and checks of the manifest work on."""
    return [
        SlideEntry(
            slide_id=e.image_id,
            path=folder / e.file,
            patient=e.patient,
            label=None if e.label < 0 else e.label,
            split=e.split,
        )
        for e in entries
    ]


def split_images(entries: Sequence[ImageEntry], splits: Mapping[str, Split]) -> list[ImageEntry]:
    """Return each image the split of its patient."""
    slides = with_splits(as_slides(Path(), entries), dict(splits))
    return [replace(e, split=s.split) for e, s in zip(entries, slides, strict=True)]


def describe_copies(folder: Path, entries: Sequence[ImageEntry]) -> str:
    """Name images with the same content in two splits; empty where there are none.

    They are no error: published splits have some (ISIC 2017: four).
    """
    same_as = find_same_content([folder / entry.file for entry in entries])
    pairs = [
        (entries[first], e) for e, first in zip(entries, same_as, strict=True) if first is not None
    ]
    apart = [
        f"{one.file} ({one.split}) and {other.file} ({other.split})"
        for one, other in pairs
        if one.split and other.split and one.split != other.split
    ]
    if not apart:
        return ""
    return (
        f"{folder}: images with the same content are in different splits: "
        f"{printable(name_some(apart, 3))}; results on them are too optimistic"
    )


# ------------------------------------------------------------ images.csv of a run

_RUN_COLUMNS = ("image_id", "file", "class", "label", "patient", "split", "mask")


def write_images(path: Path, entries: Sequence[ImageEntry]) -> None:
    """Write ``images.csv``: the data set as used."""
    rows = (
        (
            e.image_id,
            e.file,
            e.class_name,
            None if e.label < 0 else e.label,
            e.patient,
            e.split,
            e.mask,
        )
        for e in entries
    )
    update_csv(path, _RUN_COLUMNS, rows)


def read_images(path: Path) -> list[ImageEntry]:
    """Read what `write_images` wrote."""
    try:
        return [
            ImageEntry(
                check_name(row["image_id"], f"{path}: image_id", error=ManifestError),
                row["file"],
                row["class"],
                int(row["label"] or -1),
                row["patient"],
                next((s for s in SPLITS if s == row["split"]), None),
                row["mask"] or None,
            )
            for row in read_csv(path, error=ManifestError)
        ]
    except (KeyError, ValueError) as error:
        raise ManifestError(f"{path}: cannot be read ({error}); run tile again") from error
