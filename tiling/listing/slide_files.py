"""Which files of a folder are slides: one file for each slide, and the others named with a reason.

Only names and the headers of DICOM files are read, so that a folder of ten thousand slides on a
network drive is listed in seconds. Whether a slide can be read is found out when it is opened.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

from tiling.listing.dicom_header import DIRECTORY, DicomHeader, read_dicom_header
from tiling.threads import map_in_threads

_DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})

_CONVERT = "which is not read here; convert it to OME-TIFF, for example with QuPath or bfconvert"
_UNPACK = "a packed file; unpack it"
_UNFINISHED = "an unfinished download; fetch it again"
_LIST = "a list of the files of a scan, one for each channel; name these files"
# Other scanners' formats that may lie among slides.
_NOT_READ = {
    ".vsi": f"Olympus VSI, {_CONVERT}",
    ".isyntax": f"Philips iSyntax, {_CONVERT} (Philips' own software exports TIFF)",
    ".i2syntax": f"Philips iSyntax, {_CONVERT} (Philips' own software exports TIFF)",
    ".zvi": f"Zeiss ZVI, {_CONVERT}",
    ".lif": f"Leica LIF, {_CONVERT}",
    ".nd2": f"Nikon ND2, {_CONVERT}",
    ".oib": f"Olympus OIB, {_CONVERT}",
    ".oif": f"Olympus OIF, {_CONVERT}",
    ".oir": f"Olympus OIR, {_CONVERT}",
    ".ims": f"Imaris, {_CONVERT}",
    ".kfb": f"KFBio, {_CONVERT}",
    ".sdpc": f"Sqray SDPC, {_CONVERT}",
    ".tmap": f"UNIC TMAP, {_CONVERT}",
    ".mds": f"Motic MDS, {_CONVERT}",
    ".mdsx": f"Motic MDSX, {_CONVERT}",
    ".jp2": "a JPEG 2000 image without a pyramid; convert it to TIFF",
    ".jpx": "a JPEG 2000 image without a pyramid; convert it to TIFF",
    ".j2k": "a JPEG 2000 image without a pyramid; convert it to TIFF",
    ".afi": _LIST,
    ".ndpis": _LIST,
}
# Behind the suffix of a slide.
_WRAPPED = dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip", ".7z"), _UNPACK) | dict.fromkeys(
    (".part", ".partial", ".crdownload", ".download", ".filepart", ".tmp"), _UNFINISHED
)
_UID = re.compile(r"\d+(?:\.\d+){3,}", re.ASCII)  # a DICOM file may have it for a name

_THREADS = 16  # that wait for a network drive
_MOST_FOLDERS = 100  # that are searched for a hint


@dataclass(frozen=True)
class SlideFiles:
    """The slides of a folder."""

    slides: tuple[Path, ...]  # sorted; one file each
    passed_over: tuple[tuple[str, str], ...]  # name of a file that looks like a slide, and why
    folders: tuple[str, ...]  # names of its folders that are not part of a slide


def find_slides(folder: Path) -> SlideFiles:
    """Find the slides in a folder; folders in it are not searched.

    The files of a DICOM series are one slide: the file of the finest level represents it. A link
    to a file that is missing, and a file without content, are slides that cannot be opened later.

    Raises
    ------
    OSError
        If the folder cannot be listed.
    """
    slides: list[Path] = []
    dicom: list[Path] = []
    passed_over: list[tuple[str, str]] = []
    folders: list[str] = []
    known = slide_suffixes()
    with os.scandir(folder) as found:
        entries = sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)
    for entry in entries:
        path, suffix, kind = folder / entry.name, slide_suffix(entry.name), _kind_of(entry)
        looks_like_slide = suffix in known or suffix == ".zarr"
        reason = explain_unread(entry.name)
        if kind == "folder" and not looks_like_slide:
            folders.append(entry.name)
        elif kind == "folder":
            passed_over.append((entry.name, "a folder, not a slide file"))
        elif reason:
            passed_over.append((entry.name, reason))
        elif kind == "other" and looks_like_slide:
            passed_over.append((entry.name, "not a regular file"))
        elif kind == "file" and may_be_dicom(entry.name):
            dicom.append(path)
        elif looks_like_slide:
            slides.append(path)
    of_series, others = _group_series(dicom)
    return SlideFiles(
        slides=tuple(sorted([*slides, *of_series])),
        passed_over=tuple(sorted([*passed_over, *others])),
        folders=tuple(_without_companions(folders, slides)),
    )


def slide_suffixes() -> frozenset[str]:
    """Collect the suffixes of what the readers open; MIRAX and VMS by their one leading file."""
    from tiling.readers import READERS  # a second that commands without slides do not need

    return frozenset[str]().union(*(reader.suffixes for reader in READERS))


def slide_suffix(name: str) -> str:
    """Return the suffix of a slide's format, in lower case and without spaces."""
    return PurePath(name).suffix.strip().lower()


def slide_stem(name: str) -> str:
    """Return a slide file's name without its suffix.

    Examples
    --------
    >>> slide_stem("tumor_001.tif"), slide_stem("1.2.840.10008.7")
    ('tumor_001', '1.2.840.10008.7')
    """
    return name if _UID.fullmatch(name) else PurePath(name).stem


def explain_unread(name: str) -> str:
    """Explain why a file that may be a slide is not read, by its name; empty for all others.

    Examples
    --------
    >>> explain_unread("a.svs.gz"), explain_unread("a.svs")
    ('a packed file; unpack it', '')
    """
    path, suffix = PurePath(name), slide_suffix(name)
    if suffix in _WRAPPED and slide_suffix(path.stem) in slide_suffixes():
        return _WRAPPED[suffix]
    return explain_format(name)


def explain_format(name: str) -> str:
    """Explain why a format is not read, by a file's suffix; empty for all others.

    Some of these files are TIFF, but of a label or a thumbnail alone.
    """
    suffix = slide_suffix(name)
    return "" if suffix in slide_suffixes() else _NOT_READ.get(suffix, "")


def find_deeper(folder: Path, names: Iterable[str]) -> list[str]:
    """Find the subfolders that contain slides; only the first ones are searched.

    Parameters
    ----------
    names : iterable of str
        Of the folders.
    """
    known = slide_suffixes()
    return [name for name in list(names)[:_MOST_FOLDERS] if _holds_slides(folder / name, known)]


def _holds_slides(folder: Path, known: frozenset[str]) -> bool:
    try:
        with os.scandir(folder) as found:
            return any(
                not entry.name.startswith(".")
                and slide_suffix(entry.name) in known
                and entry.is_file()
                for entry in found
            )
    except OSError:  # no permission
        return False


def _kind_of(entry: "os.DirEntry[str]") -> Literal["file", "folder", "link", "other"]:
    """Return the kind of an entry, mostly without another system call."""
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
    except OSError:  # a cycle of links, or a folder without permission
        return "link"
    return "link" if entry.is_symlink() else "other"


def may_be_dicom(name: str) -> bool:
    """Whether a file may be DICOM, by its name; often it is a number or a UID without a suffix."""
    return (
        slide_suffix(name) in _DICOM_SUFFIXES or "." not in name or _UID.fullmatch(name) is not None
    )


def _without_companions(folders: Sequence[str], slides: Sequence[Path]) -> list[str]:
    """Leave out the folders that hold the data of a MIRAX or VSI file."""
    of_mirax = {path.stem for path in slides if slide_suffix(path.name) == ".mrxs"}
    return [n for n in folders if n not in of_mirax and not (n[0] == n[-1] == "_" and len(n) > 2)]


# --- DICOM -----------------------------------------------------------------------------------


def read_headers(paths: Sequence[Path]) -> list[DicomHeader | None]:
    """Read the heads of DICOM files; None where a file is none, or cannot be read."""
    return list(map_in_threads(_read_header, paths, threads=_THREADS))


def _read_header(path: Path) -> DicomHeader | None:
    try:
        return read_dicom_header(path)
    except OSError:
        return None


def _group_series(paths: Sequence[Path]) -> tuple[list[Path], list[tuple[str, str]]]:
    """Choose one file for each whole-slide image; name what is none, and why."""
    chosen: list[Path] = []
    others: list[tuple[str, str]] = []
    by_series: dict[str, list[tuple[Path, DicomHeader]]] = defaultdict(list)
    for path, header in zip(paths, read_headers(paths), strict=True):
        if header is None or (header.is_slide and not header.series):
            if slide_suffix(path.name) in _DICOM_SUFFIXES:
                chosen.append(path)  # opening it reports the problem
        elif header.is_slide:
            by_series[header.series].append((path, header))
        elif header.sop_class != DIRECTORY:
            others.append((path.name, "DICOM, but not a whole-slide image"))
    for files in by_series.values():
        levels = [file for file in files if file[1].is_level]
        if levels:
            chosen.append(min(levels, key=_finest_first)[0])
        else:
            reason = (
                "a label, an overview or a thumbnail of a DICOM slide whose levels are not here"
            )
            others += [(path.name, reason) for path, _ in files]
    return chosen, others


def _finest_first(file: tuple[Path, DicomHeader]) -> tuple[int, int, str]:
    path, header = file
    return -header.size[0] * header.size[1], header.number, path.name
