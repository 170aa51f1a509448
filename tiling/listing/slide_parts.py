"""Which files a slide consists of: one of most formats, several of MIRAX, VMS, VMU and DICOM."""

import configparser
import functools
import logging
import os
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from tiling.errors import SlideError
from tiling.files import check_file, open_file, read_bytes
from tiling.listing.dicom_header import read_dicom_header
from tiling.listing.slide_files import explain_format, slide_suffix

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlidePart:
    """One of a slide's files."""

    label: str  # distinguishes it from the others; "" where the order does not matter
    path: Path


def list_parts(path: Path) -> list[SlidePart]:
    """List the files that a slide's pixels come from, the one named first.

    A file that is missing is not listed, but the one named always is.

    Raises
    ------
    SlideError
        If a DICOM file or the index of a slide cannot be read.
    """
    suffix = slide_suffix(path.name)
    try:
        if suffix == ".mrxs":
            return [SlidePart("", path), *_mirax_parts(path)]
        if suffix in (".vms", ".vmu"):
            return [SlidePart("", path), *_hamamatsu_parts(path)]
        return [SlidePart("", path), *(_dicom_parts(path) if is_dicom(path) else ())]
    except OSError as error:
        raise explain_unreadable(path, error) from error


def check_slide_file(path: Path) -> None:
    """Refuse what cannot be a slide's file.

    Raises
    ------
    SlideError
        If the file is missing, a folder, not regular, empty, or of a format that is not read.
    """
    if path.is_dir():
        raise SlideError(
            f"{path.name}: a folder, not a slide file; name the slide in it (of MIRAX the .mrxs "
            "file, of DICOM one .dcm file of the finest level)"
        )
    if reason := explain_format(path.name):
        raise SlideError(f"{path.name}: {reason}")
    try:
        with open_file(path, "rb") as file:
            is_empty = not file.read(1)
    except OSError as error:
        raise explain_unreadable(path, error) from error
    if is_empty:
        raise SlideError(f"{path.name}: the file is empty (0 bytes); copy it again from its source")


def check_companions(path: Path) -> None:
    """Refuse pipes and devices next to a slide, which OpenSlide would open and wait for.

    Raises
    ------
    SlideError
    """
    if is_dicom(path):  # it opens all that is in the folder
        with os.scandir(path.parent) as entries:
            odd = [e for e in entries if not e.is_file() and not e.is_dir()]
        others = [path.with_name(entry.name) for entry in odd]
    else:
        others = [part.path for part in list_parts(path)[1:]]
    for other in others:
        try:
            check_file(other)
        except FileNotFoundError:
            continue  # a broken link
        except OSError as error:
            raise SlideError(
                f"{path.name}: {other.name} next to it is {error.strerror}; remove it"
            ) from error


def explain_unreadable(path: Path, error: OSError) -> SlideError:
    """Make an error that names the slide of which a file cannot be read."""
    if isinstance(error, FileNotFoundError) and path.is_symlink() and not path.exists():
        return SlideError(
            f"{path.name}: a broken link: the file that it leads to is missing; correct the "
            "link, or leave it out"
        )
    if isinstance(error, FileNotFoundError) and not path.exists():
        return SlideError(f"{path.name}: no such file in {path.parent}; check the path")
    return SlideError(
        f"{path.name}: cannot be read: {error.strerror or error}; check the path and its "
        "permissions"
    )


def _mirax_parts(path: Path) -> list[SlidePart]:
    folder = path.with_suffix("")
    if not folder.is_dir():
        return []
    found = (p for p in folder.iterdir() if p.suffix.lower() in (".dat", ".ini"))
    return [SlidePart(p.name, p) for p in sorted(found)]


def _hamamatsu_parts(path: Path) -> list[SlidePart]:
    """Files that a VMS or VMU file names, those that are there."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    try:
        parser.read_string(read_bytes(path).decode("latin-1"))
    except configparser.Error:
        return []
    keys = ((parser[section], key) for section in parser.sections() for key in parser[section])
    names = {PureWindowsPath(section[key]).name for section, key in keys if "file" in key}
    found = (path.with_name(name) for name in sorted(names - {""}))
    return [SlidePart(part.name, part) for part in found if part.exists()]


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does; `OSError` if it cannot be read."""
    with open_file(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _dicom_parts(path: Path) -> list[SlidePart]:
    """The other levels of a DICOM series, in the same folder."""
    header = read_dicom_header(path)
    if header is None or not header.series:
        return []
    levels = _levels_by_series(path.parent, path.parent.stat().st_mtime_ns)
    return [SlidePart("", p) for p in levels.get(header.series, ()) if p.name != path.name]


@functools.lru_cache(maxsize=64)
def _levels_by_series(folder: Path, changed_ns: int) -> dict[str, list[Path]]:
    """Sort the DICOM levels of a folder by series; kept until the folder changes."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        try:
            header = read_dicom_header(path) if path.is_file() else None
        except OSError as error:
            log.debug("%s: %s", path.name, error)
            continue
        if header is not None and header.series and header.is_level:
            found.setdefault(header.series, []).append(path)
    return found
