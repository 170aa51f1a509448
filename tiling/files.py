"""Files: written aside and renamed, so that nothing unfinished ever looks finished; read only
where they are regular files, so that a named pipe or a device never blocks a command.
"""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal, overload

from tiling.processes import has_ended
from tiling.threads import check_stopped, map_in_threads
from tiling.urls import RemotePath

_HERE = -100  # AT_FDCWD; the paths given are absolute
_RENAME_EXCHANGE = 2  # renameat2(2)
_OCCUPIED = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}
_ATTEMPTS = 100
BLOCK_BYTES = 2**20  # read at once by `digest_file`
MAX_DEPTH = 50  # of our own JSON files: settings are five or six deep
# Files flushed at a time: a disk writes several in the time of one (docs/reliability.md).
_FLUSHES = 8
FULL = {errno.ENOSPC, errno.EDQUOT}  # errors of a full disk, or a used-up quota
_CANNOT_FLUSH = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EROFS}

_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_file(path: Path) -> None:
    """Refuse to open anything but a regular file, or a link to one.

    Opening a named pipe waits for a writer, and reading a device may never end.

    Raises
    ------
    OSError
        With its kind in ``strerror``; also if the path is missing or not accessible.
    """
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind == stat.S_IFREG:
        return
    what = f"{_KINDS.get(kind, 'something else')}, not a regular file"
    raise OSError(errno.EISDIR if kind == stat.S_IFDIR else errno.EINVAL, what, str(path))


@overload
def open_file(
    path: Path,
    mode: Literal["r"] = ...,
    *,
    encoding: str = ...,
    newline: str | None = ...,
    errors: str | None = ...,
) -> IO[str]: ...
@overload
def open_file(path: Path, mode: Literal["rb"]) -> IO[bytes]: ...
def open_file(
    path: Path,
    mode: Literal["r", "rb"] = "r",
    *,
    encoding: str = "utf-8",
    newline: str | None = None,
    errors: str | None = None,
) -> IO[Any]:
    """Open a regular file for reading; `OSError` for anything else (see `check_file`)."""
    if not isinstance(path, RemotePath):  # for which asking takes as long as reading
        check_file(path)
    if mode == "rb":
        return path.open("rb")
    return path.open(encoding=encoding, newline=newline, errors=errors)


def read_bytes(path: Path) -> bytes:
    """Read a regular file's bytes; `OSError` for anything else (see `check_file`)."""
    with open_file(path, "rb") as file:
        return file.read()


def read_text(path: Path, *, encoding: str = "utf-8") -> str:
    """Read a regular file's text; `OSError` for anything else (see `check_file`)."""
    with open_file(path, encoding=encoding) as file:
        return file.read()


def _never(_: Path) -> bool:
    return False


@contextlib.contextmanager
def write_aside(path: Path, *, is_ours: Callable[[Path], bool] = _never) -> Iterator[Path]:
    """Return a scratch path next to `path`; on success it takes its place, else it is removed.

    The scratch path may be made a file or a folder. Its name starts with a dot and ends with
    ``.part``, so no reader takes it for a result. A rename within one folder is atomic: a reader
    sees the old output or the new one, never half of either.

    A folder takes the place of an empty folder, or of one that is ours; anything else may be
    somebody's, and would be lost.

    At a URL nothing can be renamed: the scratch path is in a local folder (`tempfile`), and is
    uploaded on success. A file replaces the old one as a whole; of a folder see `_upload_folder`.

    Parameters
    ----------
    path : Path
    is_ours : function
        Whether a folder with files at `path` may be replaced by a folder. Default: none.

    Yields
    ------
    scratch : Path
        Does not exist yet; its folder does.

    Raises
    ------
    FileExistsError
        If a folder was written, and something else is at `path`; it is left as it is.
    """
    if isinstance(path, RemotePath):
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder) / path.name
            yield scratch
            if scratch.is_dir():
                check_replaceable(path, is_ours)
                _upload_folder(scratch, path)
            else:
                path.put(scratch)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = _scratch_beside(path)
    try:
        yield scratch
        if scratch.is_dir():
            check_replaceable(path, is_ours)
            _replace_folder(scratch, path)
        else:
            scratch.replace(path)
    except OSError as error:
        if error.errno in FULL and error.filename is None:  # writing to an open file names none
            error.filename = str(path)
        raise
    finally:
        _remove(scratch)


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Return an empty scratch folder next to `folder`, removed at the end; see `move_into`.

    Of a URL it is a local folder.
    """
    if isinstance(folder, RemotePath):
        with tempfile.TemporaryDirectory() as local:
            yield Path(local)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = _scratch_beside(folder)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        _remove(scratch)


def move_into(scratch: Path, folder: Path, *, last: str = "") -> list[Path]:
    """Move every file of a scratch folder to its place in `folder`; other files there stay.

    Parameters
    ----------
    scratch, folder : Path
        On one file system.
    last : str
        Name of the file that is moved last.

    Returns
    -------
    files : list of Path
        In their new place.
    """
    names = [path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file()]
    names.sort(key=lambda name: (name.as_posix() == last, name))
    if isinstance(folder, RemotePath):
        for name in names:
            (folder / name).put(scratch / name)
        return [folder / name for name in sorted(names)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (scratch / name).replace(folder / name)
    return [folder / name for name in sorted(names)]


def _upload_folder(scratch: Path, path: RemotePath) -> None:
    """Upload a folder in place of another, so that nothing unfinished looks finished.

    The files at its root (of a store, the metadata with its finished mark) make a folder what it
    is: the old ones are deleted first, the new ones uploaded last. Old files that are not among the
    new ones are deleted in the end; two processes that upload the same files may do so at once.
    """
    old = path.measure_all()
    names = [file.relative_to(scratch).as_posix() for file in scratch.rglob("*") if file.is_file()]
    for name in old:
        if "/" not in name:
            (path / name).unlink(missing_ok=True)
    path.put_all(scratch, [name for name in names if "/" in name])
    for name in sorted(name for name in names if "/" not in name):
        (path / name).put(scratch / name)
    for name in set(old) - set(names):
        (path / name).unlink(missing_ok=True)


def make_durable(paths: Iterable[Path], *, root: Path) -> None:
    """Flush files to the disk: after this call a power loss does not take them.

    The files are flushed first, then the folders that list them, up to the one of `root`. Where
    `root` does not contain a path, its own folder is the last.

    Parameters
    ----------
    paths : iterable of Path
        Files; folders, with everything in them; or files that have been removed, so that they do
        not return.
    root : Path

    Raises
    ------
    OSError
        If the disk is full or damaged: some file systems report it only here.
    """
    files: dict[Path, None] = {}
    folders: dict[Path, None] = {}
    for path in paths:
        if isinstance(path, RemotePath):  # an object is there once it is uploaded
            continue
        for folder, _, names in os.walk(path):  # nothing, unless it is a folder
            folders[Path(folder)] = None
            files.update((Path(folder, name), None) for name in names)
        if path.is_file():
            files[path] = None
        is_inside = path.is_relative_to(root)
        for parent in path.parents:
            folders[parent] = None
            if not is_inside or parent == root.parent:
                break
    for group in (files, folders):
        for _ in map_in_threads(_flush, group, threads=_FLUSHES):
            pass


def _flush(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, PermissionError):  # moved by another process; a folder not ours
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:  # there is nothing to flush on such a file system
            raise
    finally:
        os.close(descriptor)


def _scratch_beside(path: Path) -> Path:
    # The name states its process, so that leftovers of dead processes can be recognised.
    return path.parent / f".{path.name}.{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}.part"


def check_replaceable(path: Path, is_ours: Callable[[Path], bool]) -> None:
    """Refuse to let a folder take the place of what may be somebody's.

    Parameters
    ----------
    path : Path
    is_ours : function
        Whether a folder with files is one of those that are written there.

    Raises
    ------
    FileExistsError
        If `path` is there, and neither an empty folder nor ours.
    """
    if not _is_there(path):
        return
    is_folder = path.is_dir() and not path.is_symlink()
    try:
        is_free = is_folder and (not any(path.iterdir()) or is_ours(path))
    except FileNotFoundError:  # another process has just moved it aside
        return
    if not is_free and _is_there(path):
        raise FileExistsError(
            errno.EEXIST,
            "something is there that was not written by this program, and is not replaced; name "
            "another path, or move it away",
            str(path),
        )


def _is_there(path: Path) -> bool:
    return path.exists() if isinstance(path, RemotePath) else os.path.lexists(path)


def _replace_folder(scratch: Path, path: Path) -> None:
    """Put a folder where another is, so that several processes may do so at once.

    Linux swaps the two in one step. Where the file system cannot (NFS, for one), the old folder is
    moved aside first: a process killed between the two renames leaves no folder, and the work is
    done again; another process may get in between, and then its folder is the one replaced.
    """
    if _swap(scratch, path):
        return
    for _ in range(_ATTEMPTS):
        try:
            scratch.rename(path)
            return
        except OSError as error:
            if error.errno not in _OCCUPIED:
                raise
        old = _scratch_beside(path)
        try:
            path.rename(old)
        except FileNotFoundError:  # another process has just moved it aside
            continue
        _remove(old)
    raise OSError(f"{path}: other processes keep replacing it; let one finish and try again")


def _swap(a: Path, b: Path) -> bool:
    """Exchange two paths in one step; False where that cannot be done."""
    try:
        exchange = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # not Linux, or an old C library
        return False
    done: int = exchange(
        _HERE, os.fsencode(a.absolute()), _HERE, os.fsencode(b.absolute()), _RENAME_EXCHANGE
    )
    return done == 0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        # Only ever under a scratch name of this module: its own work, or a folder that was ours
        # (`check_replaceable`). Another process may remove it too.
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> int:
    """Remove the scratch files that killed runs of this machine left in `folder`.

    Those of processes that are still alive, or that another machine made, are left alone.

    Returns
    -------
    n_removed : int
    """
    leftovers = [path for path in folder.glob(".*.part") if _is_orphan(path)]
    for path in leftovers:
        _remove(path)
    return len(leftovers)


def remove_leftovers_below(folder: Path) -> int:
    """Remove what `remove_leftovers` removes, from `folder` and every folder below it.

    The insides of Zarr stores are left out: a store is written under a scratch name as a whole.

    Returns
    -------
    n_removed : int
    """
    if isinstance(folder, RemotePath):  # whose scratch files are local
        return 0
    n_removed = 0
    for parent, names, _ in os.walk(folder):
        n_removed += remove_leftovers(Path(parent))
        names[:] = [name for name in names if not name.endswith((".zarr", ".part"))]
    return n_removed


def _is_orphan(path: Path) -> bool:
    owner = re.fullmatch(r".*\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.part", path.name)
    if owner is None or owner[1] != _HOST:
        return False
    return has_ended(int(owner[2]))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON atomically. NaN is refused: use None."""
    with write_aside(path) as scratch:
        scratch.write_text(json_text(value), encoding="utf-8")


def json_text(value: Any) -> str:
    """Format `value` as `write_json` does."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_text(path: Path, text: str, *, errors: str = "backslashreplace") -> None:
    """Write `text` as UTF-8 atomically.

    What UTF-8 cannot hold (parts of a file name in another encoding) is handled by `errors`, as in
    `open`; by default it is written as its escape.
    """
    with write_aside(path) as scratch:
        scratch.write_bytes(text.encode("utf-8", errors))


def update_text(path: Path, text: str, *, errors: str = "backslashreplace") -> None:
    """Write text as `write_text` does, unless the file holds it: a folder may be read-only."""
    try:
        if path.read_bytes() == text.encode("utf-8", errors):
            return
    except OSError:
        pass
    write_text(path, text, errors=errors)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; anything wrong with it, endless nesting included, is a `ValueError`."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Read one of our own JSON files.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is anything but one JSON object in UTF-8, nested less than `MAX_DEPTH` deep.
    """
    value = parse_json(read_bytes(path).decode("utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [item for holder in level for item in _items(holder)]
        if not level:
            return value
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def digest_json(value: Any) -> str:
    """Hash what JSON can hold: the same settings give the same 16 hexadecimal digits.

    Examples
    --------
    >>> digest_json({"a": 1, "b": 2}) == digest_json({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_file(path: Path) -> str:
    """Hash a whole file's bytes: 64 hexadecimal digits of SHA-256."""
    digest, buffer = hashlib.sha256(), bytearray(BLOCK_BYTES)
    view = memoryview(buffer)
    with open_file(path, "rb") as file:
        while count := file.readinto(buffer):  # type: ignore[attr-defined]
            check_stopped()
            digest.update(view[:count])
    return digest.hexdigest()


def digest_files(folder: Path, files: Iterable[Path]) -> str:
    """Hash some files of a folder, their names in it included: 64 hexadecimal digits of SHA-256."""
    total = hashlib.sha256()
    for name, file in sorted((file.relative_to(folder).as_posix(), file) for file in files):
        total.update(f"{digest_file(file)}  {name}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()
