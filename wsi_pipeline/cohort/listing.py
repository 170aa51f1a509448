"""The one listing of a data set's slides, for every command that is given a slide or a folder.

A slide is listed once, however many files it has; copies of one slide are known as such, so that
they never end up in two splits; and what looks like a slide but is none is named with the reason.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tiling.listing.slide_files import (
    SlideFiles,
    find_deeper,
    find_slides,
    slide_stem,
    slide_suffix,
    slide_suffixes,
)
from tiling.same_content import find_same_content
from tiling.wording import name_some
from wsi_pipeline.cohort.manifest import (
    IMAGE_SUFFIXES,
    check_entries,
    describe_unused_columns,
    read_manifest,
)
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.errors import ManifestError
from wsi_pipeline.names import find_name_problem, printable, shorten

_MOST_NAMED = 5  # pairs of copies


@dataclass(frozen=True)
class Listing:
    """The slides of a data set."""

    entries: tuple[SlideEntry, ...]
    same_as: tuple[int | None, ...]  # number of the first entry with the same content, if earlier
    notes: tuple[str, ...] = ()  # files and columns that are not used, and why


def read_input(path: Path) -> Listing:
    """List the slides of a path, and check that they are consistent.

    Parameters
    ----------
    path : Path
        A manifest (``.csv``), a folder of slides (not searched deeper), or one slide.

    Raises
    ------
    ManifestError
        If there is nothing there, a name cannot be that of a file, or the data set contradicts
        itself.
    """
    found = list_input(path)
    _check_names(path, found.entries)
    check_entries(found.entries)
    check_copies(found, found.entries)
    return found


def list_input(path: Path) -> Listing:
    """List the slides of a path like `read_input`, without checking their consistency.

    In a folder, a copy gets the patient of its original, so that both are in the same split.
    """
    if path.is_dir():
        return _list_folder(path)
    if not os.path.lexists(path):
        raise ManifestError(
            f"{printable(str(path))}: no such file or folder; give a slide, a folder or a manifest"
        )
    if path.suffix.lower() == ".csv":
        entries = read_manifest(path, check_names=False)
        same_as = find_same_content([e.path for e in entries])
        return Listing(tuple(entries), tuple(same_as), tuple(describe_unused_columns(path)))
    return Listing((_entry(path),), (None,))


def _entry(path: Path) -> SlideEntry:
    slide_id = slide_stem(path.name)
    return SlideEntry(slide_id=slide_id, path=path, patient=slide_id)


# --- a folder --------------------------------------------------------------------------------


def _list_folder(folder: Path) -> Listing:
    try:
        files = find_slides(folder)
    except OSError as error:
        raise ManifestError(f"{folder}: cannot be listed ({error.strerror})") from error
    deeper = find_deeper(folder, files.folders)
    if not files.slides:
        raise ManifestError(_explain_no_slides(folder, files, deeper))
    entries = [_entry(path) for path in files.slides]
    same_as = find_same_content(files.slides)
    shared = [
        entry if first is None else replace(entry, patient=entries[first].patient)
        for entry, first in zip(entries, same_as, strict=True)
    ]
    return Listing(tuple(shared), tuple(same_as), tuple(_describe_rest(folder, files, deeper)))


def _describe_rest(folder: Path, files: SlideFiles, deeper: Sequence[str]) -> list[str]:
    """Describe the skipped files, grouped by reason."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, reason in files.passed_over:
        by_reason[reason].append(name)
    notes = [
        f"{folder}: skipped {name_some(map(shorten, names))}: {why}"
        for why, names in by_reason.items()
    ]
    if deeper:
        notes.append(
            f"{folder}: folders are not searched deeper; there are slides in "
            f"{name_some(map(shorten, deeper))}: give such a folder, or list the "
            "slides in a manifest"
        )
    return [printable(note) for note in notes]


def _explain_no_slides(folder: Path, files: SlideFiles, deeper: Sequence[str]) -> str:
    looked_for = ", ".join(sorted(slide_suffixes()))
    if deeper:
        which = "that" if len(deeper) == 1 else "one of them, or list the slides in a manifest"
        has = "its folder {} has some" if len(deeper) == 1 else "its folders {} have some"
        hint = f"; {has.format(name_some(map(shorten, deeper)))}: give {which}"
    elif files.passed_over:
        hint = "".join(f"; {shorten(name)}: {reason}" for name, reason in files.passed_over[:3])
    else:
        hint = _hint_images(folder)
    return f"{printable(str(folder))}: no slides in this folder (looked for {looked_for}){hint}"


def _hint_images(folder: Path) -> str:
    """Explain how single images are worked on, where a folder holds some (split/class/image)."""
    found = (path for deep in ("*", "*/*", "*/*/*") for path in folder.glob(deep))
    if not any(path.suffix.lower() in IMAGE_SUFFIXES for path in found):
        return ""
    return (
        "; single images are no slides: to work on it as a folder of images use --set 'images={}' "
        "(in a config images: {}; docs/images_folder.md)"
    )


# --- checks ----------------------------------------------------------------------------------


def _check_names(source: Path, entries: Sequence[SlideEntry]) -> None:
    """Refuse slides whose files' names cannot be their ids."""
    found = [(entry, find_name_problem(entry.slide_id)) for entry in entries]
    bad = [f"'{shorten(entry.path.name)}' ({reason})" for entry, reason in found if reason]
    if not bad:
        return
    table = "the manifest" if source.suffix.lower() == ".csv" else "a manifest"
    raise ManifestError(
        f"{printable(str(source))}: no slide_id can be made of the file name "
        f"{name_some(bad)}; give a slide_id in the column slide_id of {table} "
        "(wsi-pipeline slides INPUT --csv FILE writes one with proposals), or rename the file"
    )


def check_copies(listing: Listing, entries: Sequence[SlideEntry]) -> None:
    """Refuse copies of one slide in two splits: the model would be tested on what it has seen.

    Parameters
    ----------
    listing : Listing
    entries : sequence of SlideEntry
        Those of the listing, with their splits.

    Raises
    ------
    ManifestError
        Naming both files, their splits and the remedy.
    """
    placed: dict[int, SlideEntry] = {}  # by the first of its copies
    for number, (entry, first) in enumerate(zip(entries, listing.same_as, strict=True)):
        if entry.split is None:
            continue
        other = placed.setdefault(number if first is None else first, entry)
        if entry.split != other.split:
            raise ManifestError(
                f"{_name_both(other, entry)}, and are in two splits: {other.split} and "
                f"{entry.split}; give both the same patient (and the same split, where the "
                "manifest has them), or leave one out"
            )


def describe_copies(listing: Listing) -> list[str]:
    """Name the copies of a data set, each with its original, the first few of many."""
    pairs = [
        (listing.entries[first], entry)
        for entry, first in zip(listing.entries, listing.same_as, strict=True)
        if first is not None
    ]
    notes = [
        f"{_name_both(*pair)}: leave one out, or the slide counts twice"
        for pair in pairs[:_MOST_NAMED]
    ]
    more = len(pairs) - len(notes)
    return [*notes, *([f"and {more} more copies; wsi-pipeline slides lists them"] if more else [])]


def _name_both(one: SlideEntry, other: SlideEntry) -> str:
    alike = one.path.name == other.path.name  # in two folders, or one file twice
    names = [shorten(str(s.path) if alike else s.path.name, 200) for s in (one, other)]
    names = [
        name if slide.slide_id == slide_stem(slide.path.name) else f"{name} ({slide.slide_id})"
        for name, slide in zip(names, (one, other), strict=True)
    ]
    same = "are files of one DICOM series" if _is_dicom(one, other) else "have the same content"
    return f"{names[0]} and {names[1]} {same}"


def _is_dicom(one: SlideEntry, other: SlideEntry) -> bool:
    both = {slide_suffix(slide.path.name) for slide in (one, other)}
    return both <= {".dcm", ".dicom"} and one.path.name != other.path.name
