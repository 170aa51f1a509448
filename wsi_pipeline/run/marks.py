"""Marks: small JSON files that record which files a unit of work made, and their checksums.

A mark holds the fingerprint of the settings and inputs, and the size and SHA-256 of each file. For
a patch store, the SHA-256 covers every file except the shards of pixels, which store a checksum per
patch, verified when it is read. Checking a finished run therefore reads everything but the pixels.
Marks of earlier versions have no checksums; only sizes are compared for them.

A damaged mark is treated as missing, and its unit is rebuilt. A later stage that reads a damaged
file adds a note to the mark of the stage that made it, which then rebuilds the file.
"""

import logging
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from tiling.files import digest_file, digest_files, read_json_object, write_json
from tiling.urls import RemotePath, is_url

log = logging.getLogger(__name__)

Value = TypeVar("Value", int, str)


@dataclass(frozen=True)
class Mark:
    """Files of a finished unit."""

    fingerprint: str  # of settings and inputs
    files: dict[str, int]  # path relative to the run folder -> bytes (folders: of all their files)
    sha256: dict[str, str]  # by the same paths; empty: written by an earlier version
    damaged: tuple[str, ...] = ()  # damage found by later stages, one sentence each


@dataclass(frozen=True)
class Problem:
    """Why a finished unit's file cannot be used."""

    name: str  # path relative to the run folder
    what: str  # the rest of the sentence
    is_missing: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.what}"


def read_mark(path: Path) -> Mark | None:
    """Read a mark; None if it is missing, or damaged (with a warning)."""
    try:
        return _parse(read_json_object(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s: cannot be read (%s); treated as missing", _show(path), error.strerror)
        return None
    except ValueError as error:
        log.warning("%s: damaged mark (%s); treated as missing", _show(path), error)
        return None


def _parse(found: dict[str, Any]) -> Mark:
    fingerprint, damaged = found.get("fingerprint"), found.get("damaged", [])
    if not isinstance(fingerprint, str):
        raise ValueError("it has no fingerprint")
    files, sha256 = _mapping(found, "files", int), _mapping(found, "sha256", str)
    if not set(sha256) <= set(files):
        raise ValueError("its sha256 are not those of its files")
    if not isinstance(damaged, list) or not all(isinstance(line, str) for line in damaged):
        raise ValueError("its damaged is not a list of sentences")
    return Mark(fingerprint, files, sha256, tuple(damaged))


def _mapping(found: dict[str, Any], key: str, kind: type[Value]) -> dict[str, Value]:
    """Read a mapping from paths; ``files`` must be there."""
    value: Any = found.get(key, None if key == "files" else {})
    if not isinstance(value, dict):
        raise ValueError(f"its {key} are not listed by path")
    for name, item in value.items():
        if type(item) is not kind or "\0" in name:
            raise ValueError(f"{item!r} under {key} is not of type {kind.__name__}")
    return value


def read_names(path: Path) -> list[str]:
    """Read the file names of a mark or of a list of earlier files; empty if it is damaged."""
    try:
        files = read_json_object(path).get("files", [])
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        log.warning("%s: damaged list of files (%s); none of them is removed", _show(path), error)
        return []
    names = files if isinstance(files, (list, dict)) else []
    return [name for name in names if isinstance(name, str) and "\0" not in name]


def _show(path: Path) -> str:
    """Path of a file under ``.state/``, beginning with the run folder."""
    parts = path.parts
    return str(Path(*parts[parts.index(".state") - 1 :])) if ".state" in parts[1:] else str(path)


def write_mark(path: Path, mark: Mark) -> None:
    """Write a mark atomically."""
    value: dict[str, Any] = {
        "fingerprint": mark.fingerprint,
        "files": mark.files,
        "sha256": mark.sha256,
    }
    write_json(path, value | ({"damaged": list(mark.damaged)} if mark.damaged else {}))


def make_mark(root: Path, fingerprint: str, files: Iterable[Path]) -> tuple[Mark, list[str]]:
    """Describe files that have just been written.

    Returns
    -------
    mark : Mark
    absent : list of str
        Missing files.
    """
    # An export may be outside the run folder.
    paths = {relative_name(path, root): path for path in files}
    sizes = {name: measure(path) for name, path in paths.items()}
    absent = [name for name, size in sizes.items() if size is None]
    whole = {name: size for name, size in sizes.items() if size is not None}
    sha256 = {name: digest_output(paths[name]) for name in whole}
    return Mark(fingerprint, whole, sha256), absent


def relative_name(path: Path, root: Path) -> str:
    """Path of a file as marks name it: from the run folder, also where it is outside."""
    if is_url(root):
        return path.relative_to(root).as_posix()
    return Path(os.path.relpath(path, root)).as_posix()


def add_damage(path: Path, sentence: str) -> None:
    """Record in a mark the damage found by a later stage, if it can be written."""
    mark = read_mark(path)
    if mark is None or sentence in mark.damaged:
        return
    try:
        write_mark(path, replace(mark, damaged=(*mark.damaged, sentence)))
    except OSError as error:
        log.debug("%s: %s was not recorded (%s)", path, sentence, error)


def find_problems(
    root: Path, mark_path: Path, mark: Mark, names: Sequence[str] | None = None
) -> list[Problem]:
    """Compare the files on disk with a mark: all of them, or those in `names`."""
    first = next(iter(mark.files), mark_path.name)
    problems = [Problem(first, sentence) for sentence in mark.damaged]
    for name in mark.files if names is None else [name for name in names if name in mark.files]:
        try:
            found = _find_problem(marked_file(root, name), name, mark_path, mark)
        except OSError as error:
            found = Problem(name, f"cannot be read ({error.strerror or error})")
        problems += [] if found is None else [found]
    return problems


def _find_problem(path: Path, name: str, mark_path: Path, mark: Mark) -> Problem | None:
    size = measure(path)
    if size is None:
        return Problem(name, "is missing", is_missing=True)
    if size != mark.files[name]:
        return Problem(name, f"has {size} bytes, not {mark.files[name]}")
    if name not in mark.sha256 or is_url(path):  # where each upload is atomic and checked
        return None
    if digest_output(path) != mark.sha256[name]:
        return Problem(name, "has changed since it was written")
    damage = _find_changed_pixels(path, mark_path)
    return None if damage is None else Problem(name, f"is damaged: {damage}")


def marked_file(root: Path, name: str) -> Path:
    """Path of a file of a mark. Links are not resolved: the run folder may be a link."""
    return root / name if is_url(root) else Path(os.path.normpath(root / name))


def is_inside(name: str) -> bool:
    """Whether the name of a file in a mark is one inside the run folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and bool(path.parts)


def measure(path: Path) -> int | None:
    """Bytes of a file, or of all files in a folder; None if it does not exist."""
    if isinstance(path, RemotePath) and path.is_dir():
        return sum(path.measure_all().values())
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISDIR(found.st_mode):
        return sum(size for _, size in _list_files(path))
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _list_files(folder: Path) -> Iterator[tuple[Path, int]]:
    """List the files in a folder and below it, with their bytes.

    Each folder is listed once and each file looked at once: of a store of coordinates, half of what
    `Path.rglob` and `Path.is_file` ask a file server for.
    """
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            with suppress(FileNotFoundError):  # a link to nothing
                found = path.stat()
                if stat.S_ISREG(found.st_mode):
                    yield path, found.st_size


def digest_output(path: Path) -> str:
    """SHA-256 of a file or folder; for a store, see `tiling.store_files.digest_table_files`."""
    if not path.is_dir():
        return digest_file(path)
    if _has_pixels(path):
        from tiling.store_files import digest_table_files

        return digest_table_files(path)
    return digest_files(path, (file for file, _ in _list_files(path)))


def _has_pixels(path: Path) -> bool:
    return (path / "patches" / "zarr.json").is_file()


def _find_changed_pixels(path: Path, mark_path: Path) -> str | None:
    """Verify the shards that were written after the mark.

    If the whole store is newer than its mark, it was copied without its modification times; it is
    not verified here, since that takes long and each patch is verified when it is read.
    """
    if not path.is_dir() or not _has_pixels(path):
        return None
    marked = mark_path.stat().st_mtime_ns
    newest = max(
        (file.stat().st_mtime_ns for file in (path / "patches" / "c").rglob("*")), default=0
    )
    if newest <= marked or (path / "zarr.json").stat().st_mtime_ns > marked:
        return None
    from tiling.store_files import find_damaged_pixels

    damage = find_damaged_pixels(path, changed_since=marked)
    return damage and damage.removeprefix(f"{path.name}: damaged: ").removesuffix(
        "; run tile again"
    )
