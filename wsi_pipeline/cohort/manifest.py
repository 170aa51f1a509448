"""The manifest: the table of a data set's slides, their patients, labels and splits.

Reading a manifest opens no slide: a file that is missing or broken fails later, by itself,
and never stops the others. What makes the data set itself wrong (ids, labels, patients, splits)
is an error here, before any work is done.
"""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path, PurePath
from typing import cast, get_args

from tiling.contracts import Unclassified
from tiling.listing.slide_files import slide_stem
from tiling.urls import is_url
from wsi_pipeline.contracts import SPLITS, SlideEntry, Split
from wsi_pipeline.csv_files import (
    as_mapping,
    check_spelling,
    describe_unused,
    guard,
    iterate_csv,
    update_csv,
)
from wsi_pipeline.errors import ManifestError, StageError
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.names import check_name, describe_twins, find_text_problem, name_key, printable

COLUMNS = ("slide", "slide_id", "patient", "label", "annotation", "split", "mpp", "unclassified")

# Columns that the command `slides` adds for a person to read.
FACTS = (
    "readable", "problem", "notes", "vendor", "width", "height", "levels", "downsamples", "mpp_x",
    "mpp_y", "objective_power", "bounds", "probe", "bytes", "duplicate_of",
)  # fmt: skip

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")  # of a folder of images


def read_manifest(path: Path, *, check_names: bool = True) -> list[SlideEntry]:
    """Read a manifest's rows, in their order; paths are relative to the manifest's folder.

    Parameters
    ----------
    path : Path
    check_names : bool
        False: an id that is made of a file's name may be one that cannot be used.

    Raises
    ------
    ManifestError
        If the file cannot be read, or a row is invalid; with file and line.
    """
    # Paths may hold bytes that are not UTF-8, as file systems allow them; nothing else may.
    rows = iterate_csv(path, error=ManifestError, undecodable="surrogateescape")
    _, header = next(rows, (0, []))
    _check_header(path, header)
    entries = []
    for line, cells in rows:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(header):
            raise ManifestError(f"{path}, line {line}: more fields than the header has columns")
        entry = _parse_row(path, line, as_mapping(header, cells))
        if check_names:
            remedy = "give it a slide_id in the column of that name"
            what = f"{path}, line {line}: the slide_id made of the file name"
            check_name(entry.slide_id, what, remedy=remedy, error=ManifestError)
        entries.append(entry)
    if not entries:
        raise ManifestError(f"{path}: the manifest has no rows; name at least one slide")
    return entries


def describe_unused_columns(path: Path) -> list[str]:
    """Name a manifest's columns that are not used, in one line or none."""
    rows = iterate_csv(path, error=ManifestError, undecodable="surrogateescape")
    _, header = next(rows, (0, []))
    return [printable(line) for line in describe_unused(path, header, (*COLUMNS, *FACTS))]


def _check_header(path: Path, names: Sequence[str]) -> None:
    if "slide" not in names:
        hint = ""
        if any(";" in name for name in names):
            hint = "; use commas between columns"
        elif any(PurePath(name).suffix for name in names):
            hint = f"; the first line looks like data: begin with a header ({','.join(COLUMNS)})"
        raise ManifestError(f"{path}: no column 'slide' in the header {list(names)}{hint}")
    check_spelling(path, names, COLUMNS, error=ManifestError)
    doubled = sorted({name for name in names if names.count(name) > 1 and name in COLUMNS})
    if doubled:
        raise ManifestError(f"{path}: column '{doubled[0]}' is repeated in the header")


def _parse_row(path: Path, line: int, row: Mapping[str, str]) -> SlideEntry:
    where = f"{path}, line {line}"
    text = {name: row.get(name, "").strip() for name in COLUMNS}
    if not text["slide"]:
        raise ManifestError(f"{where}: the column 'slide' is empty")
    slide = _locate(where, path.parent, row["slide"])
    if text["slide_id"]:
        check_name(text["slide_id"], f"{where}: slide_id", error=ManifestError)
    slide_id = text["slide_id"] or slide_stem(slide.name)
    return SlideEntry(
        slide_id=slide_id,
        path=slide,
        patient=_parse_patient(where, text["patient"]) or slide_id,
        label=_parse_label(where, text["label"]),
        annotation=_locate(where, path.parent, row["annotation"]) if text["annotation"] else None,
        split=_parse_split(where, text["split"]),
        mpp=_parse_mpp(where, text["mpp"]),
        unclassified=_parse_unclassified(where, text["unclassified"]),
    )


def _locate(where: str, folder: Path, cell: str) -> Path:
    """Find the file that a cell names; spaces around a name are of the file if one is so named."""
    if "\0" in cell:
        raise ManifestError(f"{where}: a file name with a NUL character, '{printable(cell)}'")
    if is_url(cell.strip()):
        raise ManifestError(
            f"{where}: {cell.strip()} is a URL, and slides, annotations and masks are read from "
            "file systems only; copy it to a local folder and list that (docs/storage.md)"
        )
    if is_url(folder):  # slides are on this machine
        folder = Path()
    name = cell if os.path.lexists(folder / cell) else cell.strip()
    if "bytes" in find_text_problem(name) and not os.path.lexists(folder / name):
        raise ManifestError(
            f"{where}: not in UTF-8, and no file is named '{printable(name)}' in its bytes; save "
            "the manifest as CSV in UTF-8"
        )
    return folder / name


def _parse_patient(where: str, text: str) -> str:
    reason = find_text_problem(text)
    if reason:
        raise ManifestError(f"{where}: patient '{printable(text)}' contains {reason}")
    return text


def _parse_label(where: str, text: str) -> int | None:
    # Spreadsheets and pandas write 1.0 for 1 once a column has gaps.
    labels = {"": None, "1": 1, "0": 0, "1.0": 1, "0.0": 0}
    if text not in labels:
        raise ManifestError(
            f"{where}: label '{text}' is none of 1 (tumour), 0 (normal), empty (unknown)"
        )
    return labels[text]


def _parse_split(where: str, text: str) -> Split | None:
    for split in SPLITS:
        if text == split:
            return split
    if text:
        raise ManifestError(f"{where}: split '{text}' is none of {', '.join(SPLITS)}, empty")
    return None


def _parse_mpp(where: str, text: str) -> float | None:
    if not text:
        return None
    try:
        mpp = float(text)
    except ValueError:
        mpp = math.nan
    if not (math.isfinite(mpp) and mpp > 0):
        raise ManifestError(f"{where}: mpp '{text}' is not a positive number of µm per pixel")
    return mpp


def _parse_unclassified(where: str, text: str) -> Unclassified | None:
    for choice in get_args(Unclassified):
        if text == choice:
            return cast(Unclassified, choice)
    if text:
        raise ManifestError(
            f"{where}: unclassified must be one of {', '.join(get_args(Unclassified))} or empty, "
            f"got '{text}'"
        )
    return None


def check_entries(entries: Sequence[SlideEntry]) -> None:
    """Check what must hold between rows: ids are unique, and a patient is in one split.

    Raises
    ------
    ManifestError
        Naming both files of a doubled id, or the patient and its splits.
    """
    by_id: dict[str, SlideEntry] = {}
    for entry in entries:
        other = by_id.setdefault(name_key(entry.slide_id), entry)
        if other is not entry:
            ids = f"'{other.slide_id}' and '{entry.slide_id}'"
            what = (
                f"two slides have the id '{entry.slide_id}'"
                if other.slide_id == entry.slide_id
                else f"the ids {ids} {describe_twins(other.slide_id, entry.slide_id)}"
            )
            raise ManifestError(
                printable(f"{what}: {other.path} and {entry.path}; ")
                + "give each its own in the manifest's slide_id column"
            )
    splits: dict[str, dict[Split, str]] = defaultdict(dict)
    for entry in entries:
        if entry.split is not None:
            splits[entry.patient].setdefault(entry.split, entry.slide_id)
    for patient, found in splits.items():
        if len(found) > 1:
            where = ", ".join(f"{split} ({slide_id})" for split, slide_id in sorted(found.items()))
            raise ManifestError(
                f"patient '{patient}' is in {len(found)} splits: {where}; "
                "a patient belongs to one split, or the test is not a test"
            )


def read_run_manifest(run: RunFolder) -> list[SlideEntry]:
    """Read the manifest as a run used it.

    Raises
    ------
    StageError
        If this is no run folder.
    """
    if run.images.is_file():
        raise StageError(
            f"{run.path}: a run on a folder of images; this is for runs on slides "
            "(for images see docs/images_folder.md)"
        )
    if not run.manifest.is_file():
        raise StageError(
            f"{run.path}: not a run folder (it has no slides.csv); "
            f"make one with: wsi-pipeline tile INPUT --out {run.path}"
        )
    return read_manifest(run.manifest)


def write_manifest(path: Path, entries: Sequence[SlideEntry]) -> None:
    """Write a manifest that `read_manifest` reads back as the same entries.

    Paths are written relative to the manifest's folder, so that no folder of this machine is
    recorded and the data set can be moved (a manifest at a URL has absolute ones); bytes that are
    not UTF-8 are written unchanged.
    """
    rows = manifest_rows(entries, path.parent)
    update_csv(path, COLUMNS, rows, undecodable="surrogateescape")


def manifest_rows(entries: Iterable[SlideEntry], folder: Path) -> list[list[str]]:
    """Write entries as the fields of `COLUMNS`, of a manifest in `folder`."""
    resolve = cache(Path.resolve)  # each folder once: every part of its path is looked at
    return [_manifest_row(e, folder, resolve) for e in entries]


def _manifest_row(e: SlideEntry, folder: Path, resolve: Callable[[Path], Path]) -> list[str]:
    return [
        _relative(e.path, folder, resolve),
        e.slide_id,
        e.patient,
        "" if e.label is None else str(e.label),
        _relative(e.annotation, folder, resolve) if e.annotation else "",
        e.split or "",
        "" if e.mpp is None else repr(e.mpp),
        e.unclassified or "",
    ]


def _relative(path: Path, folder: Path, resolve: Callable[[Path], Path]) -> str:
    # A link keeps its own name: the name of its target may identify a patient.
    named = resolve(path.parent) / path.name
    text = str(named) if is_url(folder) else os.path.relpath(named, resolve(folder))
    text = Path(text).as_posix()
    # A name that is guarded in a CSV, or trimmed, is no path to other programs.
    return text if guard(text) == text and text == text.lstrip() else f"./{text}"


def with_splits(entries: Sequence[SlideEntry], splits: dict[str, Split]) -> list[SlideEntry]:
    """Return each entry the split of its patient."""
    return [replace(entry, split=splits.get(entry.patient, entry.split)) for entry in entries]
