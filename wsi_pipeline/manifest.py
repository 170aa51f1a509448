"""The data set: a slide, a folder of slides, or a manifest (contract 2).

Reading a manifest looks at no slide: a file that is missing or broken fails later, by itself,
and never stops the others. What makes the data set itself wrong (ids, labels, patients, splits)
is an error here, before any work is done.
"""

import csv
import difflib
import io
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tiling.files import open_file, write_text
from wsi_pipeline.contracts import SPLITS, SlideEntry, Split
from wsi_pipeline.errors import ManifestError

COLUMNS = ("slide", "slide_id", "patient", "label", "annotation", "split", "mpp")

# What OpenSlide and the TIFF reader open; DICOM and MIRAX by their one leading file.
SLIDE_SUFFIXES = frozenset(
    {
        ".bif", ".czi", ".dcm", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".tif", ".tiff",
        ".vms", ".vmu",
    }
)  # fmt: skip
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")  # of a folder of images


def read_input(path: Path) -> list[SlideEntry]:
    """Read the data set that a path stands for.

    Parameters
    ----------
    path : Path
        A manifest (``.csv``), a folder of slides (not searched deeper), or one slide.

    Raises
    ------
    ManifestError
        If there is nothing there, or the data set contradicts itself.
    """
    entries = list_input(path)
    check_entries(entries)
    return entries


def list_input(path: Path) -> list[SlideEntry]:
    """List the slides that a path stands for, as `read_input` does, but let them contradict."""
    if path.is_dir():
        return _folder_entries(path)
    if not path.exists():
        raise ManifestError(f"{path}: no such file or folder; give a slide, a folder or a manifest")
    if path.suffix.lower() == ".csv":
        return read_manifest(path)
    return [SlideEntry(slide_id=path.stem, path=path, patient=path.stem)]


def _folder_entries(folder: Path) -> list[SlideEntry]:
    files = _slides_in(folder)
    if not files:
        inside = sorted(p.name for p in folder.glob("*/") if _slides_in(p))
        hint = f"; its folder {inside[0]} has some: give that" if inside else _hint_images(folder)
        raise ManifestError(
            f"{folder}: no slides in this folder (looked for "
            f"{', '.join(sorted(SLIDE_SUFFIXES))}){hint}"
        )
    return [SlideEntry(slide_id=p.stem, path=p, patient=p.stem) for p in files]


def _hint_images(folder: Path) -> str:
    """Say how single images are worked on, where a folder holds some (split/class/image)."""
    found = (path for deep in ("*", "*/*", "*/*/*") for path in folder.glob(deep))
    if not any(path.suffix.lower() in IMAGE_SUFFIXES for path in found):
        return ""
    return (
        "; single images are no slides: to work on it as a folder of images say --set 'images={}' "
        "(in a config images: {}; docs/images_folder.md)"
    )


def _slides_in(folder: Path) -> list[Path]:
    if not os.access(folder, os.R_OK | os.X_OK):
        return []
    return sorted(p for p in folder.iterdir() if _looks_like_slide(p))


def _looks_like_slide(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return path.suffix.lower() in SLIDE_SUFFIXES and path.is_file() and not hidden


def read_manifest(path: Path) -> list[SlideEntry]:
    """Read a manifest's rows, in their order; paths are relative to the manifest's folder."""
    try:
        with open_file(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            _check_header(path, reader.fieldnames or [])
            entries = [_parse_row(path, reader.line_num, row) for row in reader if _has_text(row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror})") from error
    if not entries:
        raise ManifestError(f"{path}: the manifest has no rows; name at least one slide")
    return entries


def _has_text(row: dict[str, str | None]) -> bool:
    return any(isinstance(value, str) and value.strip() for value in row.values())


def _check_header(path: Path, names: Sequence[str]) -> None:
    if "slide" not in names:
        hint = "; use commas between columns" if any(";" in name for name in names) else ""
        raise ManifestError(f"{path}: no column 'slide' in the header {list(names)}{hint}")
    for name in names:
        # Other columns are the user's own; one that nearly has our name would be lost silently.
        close = difflib.get_close_matches(name.strip().lower(), COLUMNS, n=1, cutoff=0.8)
        if name not in COLUMNS and close and close[0] not in names:
            raise ManifestError(f"{path}: unknown column '{name}'; did you mean '{close[0]}'?")
    doubled = sorted({name for name in names if names.count(name) > 1 and name in COLUMNS})
    if doubled:
        raise ManifestError(f"{path}: column '{doubled[0]}' stands twice in the header")


def _parse_row(path: Path, line: int, row: dict[str, str | None]) -> SlideEntry:
    where = f"{path}, line {line}"
    if None in row:
        raise ManifestError(f"{where}: more fields than the header has columns")
    text = {name: (row.get(name) or "").strip() for name in COLUMNS}
    if not text["slide"]:
        raise ManifestError(f"{where}: the column 'slide' is empty")
    slide_id = text["slide_id"] or Path(text["slide"]).stem
    if "/" in slide_id or "\\" in slide_id or slide_id.startswith("."):
        raise ManifestError(f"{where}: slide_id '{slide_id}' cannot be a file name")
    return SlideEntry(
        slide_id=slide_id,
        path=path.parent / text["slide"],
        patient=text["patient"] or slide_id,
        label=_parse_label(where, text["label"]),
        annotation=path.parent / text["annotation"] if text["annotation"] else None,
        split=_parse_split(where, text["split"]),
        mpp=_parse_mpp(where, text["mpp"]),
    )


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


def check_entries(entries: Sequence[SlideEntry]) -> None:
    """Check what must hold between rows: ids are unique, and a patient is in one split.

    Raises
    ------
    ManifestError
        Naming both files of a doubled id, or the patient and its splits.
    """
    by_id: dict[str, SlideEntry] = {}
    for entry in entries:
        other = by_id.setdefault(entry.slide_id, entry)
        if other is not entry:
            raise ManifestError(
                f"two slides have the id '{entry.slide_id}': {other.path} and {entry.path}; "
                "give each its own in the manifest's slide_id column"
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


def write_manifest(path: Path, entries: Sequence[SlideEntry]) -> None:
    """Write a manifest that `read_manifest` reads back as the same entries.

    Paths are written relative to the manifest's folder, so no folder of this machine is told and
    the data set can be moved as a whole.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for e in entries:
        writer.writerow(manifest_row(e, path.parent))
    write_text(path, buffer.getvalue())


def manifest_row(e: SlideEntry, folder: Path) -> list[str]:
    """Write an entry as the fields of `COLUMNS`, of a manifest in `folder`."""
    return [
        _relative(e.path, folder),
        e.slide_id,
        e.patient,
        "" if e.label is None else str(e.label),
        _relative(e.annotation, folder) if e.annotation else "",
        e.split or "",
        "" if e.mpp is None else repr(e.mpp),
    ]


def _relative(path: Path, folder: Path) -> str:
    # A link keeps its own name: what it stands for may be named after a patient.
    named = path.parent.resolve() / path.name
    return Path(os.path.relpath(named, folder.resolve())).as_posix()


def with_splits(entries: Sequence[SlideEntry], splits: dict[str, Split]) -> list[SlideEntry]:
    """Give each entry the split of its patient."""
    return [replace(entry, split=splits.get(entry.patient, entry.split)) for entry in entries]
