"""Files at URLs (``s3://bucket/run``), as paths.

`as_path` turns a URL into a `RemotePath`, which reads through fsspec what object stores can read:
objects, prefixes, sizes and dates. Everything else that is done with a path (opening it to write,
renaming, locking, a library that opens files by name) ends in `LocalOnlyError`: `os.fspath` refuses
a `RemotePath`, so no URL is ever taken for a folder called ``s3:``.

`tiling.files` writes to URLs: files are made in a local scratch folder and uploaded.
"""

import errno
import fnmatch
import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PosixPath
from typing import IO, Any, NoReturn

from tiling.errors import TilingError

# Object stores: an upload replaces an object as a whole, or not at all.
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
_StrPath = str | os.PathLike[str]
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


class LocalOnlyError(TilingError):
    """A URL was given where only a local file or folder will do."""


def is_url(path: _StrPath) -> bool:
    """Whether a path is a URL, also after `pathlib` has joined its two slashes.

    Examples
    --------
    >>> [is_url(p) for p in ("s3://bucket/run", Path("s3://bucket/run"), "run", "/data/a:b/run")]
    [True, True, False, False]
    """
    return isinstance(path, RemotePath) or _SCHEME.match(str(path)) is not None


def as_path(path: _StrPath) -> Path:
    """Return a local path, or a `RemotePath` for a URL.

    Examples
    --------
    >>> str(as_path("s3://bucket/run") / "tiles")
    's3://bucket/run/tiles'
    """
    return RemotePath(str(path)) if is_url(path) else Path(path)


def local_path(path: _StrPath, what: str) -> Path:
    """Return a local path; refuse a URL.

    Parameters
    ----------
    path : str or path
    what : str
        Subject of the error's sentence, such as ``slides``.

    Raises
    ------
    LocalOnlyError
        If it is a URL.
    """
    if is_url(path):
        refuse(as_path(path), f"{what} must be on a file system")
    return Path(path)


def refuse(path: Path, reason: str) -> NoReturn:
    """Refuse a URL, with the remedy.

    Raises
    ------
    LocalOnlyError
    """
    raise LocalOnlyError(
        f"{path}: {reason}; copy it to a local folder and give that (docs/storage.md)"
    )


@dataclass(frozen=True)
class RemoteStat:
    """What an object store knows of an object: the part of `os.stat_result` that is used."""

    st_size: int
    st_mtime_ns: int
    st_mode: int


class RemotePath(PosixPath):
    """A URL that is read as a path is.

    Every request is answered by the store itself: no listing is kept. Files are read whole, but
    for `read_range`.
    """

    def __str__(self) -> str:
        scheme, *parts = self.parts or (".",)
        return f"{scheme}//{'/'.join(parts)}" if scheme.endswith(":") else "/".join(self.parts)

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __fspath__(self) -> str:
        refuse(self, "this needs a file system, not a URL")

    def __reduce__(self) -> Any:
        return (RemotePath, (str(self),))

    def is_absolute(self) -> bool:
        """A URL is."""
        return bool(self.parts) and self.parts[0].endswith(":")

    def absolute(self) -> "RemotePath":
        """Return itself."""
        return self

    def resolve(self, strict: bool = False) -> "RemotePath":
        """Take out ``..``; there are no links."""
        scheme, *parts = self.parts
        return RemotePath(f"{scheme}/{os.path.normpath('/' + '/'.join(parts))}")

    def is_symlink(self) -> bool:
        """There are no links."""
        return False

    @property
    def scheme(self) -> str:
        """``s3`` of ``s3://bucket/run``."""
        return self.parts[0].removesuffix(":") if self.is_absolute() else ""

    # --- looking ---------------------------------------------------------------------------

    def stat(self, *, follow_symlinks: bool = True) -> Any:
        """Size, date and kind."""
        with _named(self):
            files, key = self._place()
            found = files.info(key)
        kind = stat.S_IFDIR if found["type"] == "directory" else stat.S_IFREG
        return RemoteStat(int(found.get("size") or 0), _date_ns(found), kind)

    def exists(self, **_: Any) -> bool:
        """Whether there is an object, or one below it."""
        return self._mode() != 0

    def is_file(self, **_: Any) -> bool:
        """Whether there is an object."""
        return stat.S_ISREG(self._mode())

    def is_dir(self, **_: Any) -> bool:
        """Whether there is an object below it."""
        return stat.S_ISDIR(self._mode())

    def _mode(self) -> int:
        try:
            return int(self.stat().st_mode)
        except FileNotFoundError:
            return 0

    def iterdir(self) -> Iterator["RemotePath"]:  # type: ignore[override]  # of its own kind
        """What is directly below it."""
        return iter([self / name for name in self._list()])

    def _list(self) -> dict[str, bool]:
        """Names of what is directly below it, and whether each is a folder: one listing."""
        with _named(self):
            files, key = self._place()
            found = {one["name"].rstrip("/"): one["type"] for one in files.ls(key, detail=True)}
        found.pop(key.rstrip("/"), None)  # of a prefix that is an object, too
        return {
            name.rpartition("/")[2]: kind == "directory" for name, kind in sorted(found.items())
        }

    def measure_all(self) -> dict[str, int]:
        """Sizes of all objects below it, by their path from here: one listing."""
        with _named(self):
            files, key = self._place()
            try:
                found = files.find(key, detail=True)
            except FileNotFoundError:
                return {}
        root = f"{key.rstrip('/')}/"
        return {
            name.removeprefix(root): int(about.get("size") or 0)
            for name, about in sorted(found.items())
            if name.startswith(root) and about["type"] == "file"
        }

    def rglob(self, pattern: str, **_: Any) -> Iterator["RemotePath"]:  # type: ignore[override]
        """Objects below it with a name; prefixes are not listed."""
        return iter(
            [
                self / name
                for name in self.measure_all()
                if fnmatch.fnmatchcase(name.rpartition("/")[2], pattern)
            ]
        )

    def glob(self, pattern: str, **_: Any) -> Iterator["RemotePath"]:  # type: ignore[override]
        """What is below it with a name: ``name``, ``name/``, ``folder/name`` or ``**/name``."""
        first, _slash, rest = pattern.partition("/")
        if first == "**":
            return self.rglob(rest)
        try:
            if not rest:
                folders_only = pattern.endswith("/")
                found = [
                    self / name
                    for name, is_folder in self._list().items()
                    if fnmatch.fnmatchcase(name, first) and (is_folder or not folders_only)
                ]
            elif "/" not in rest:
                found = [
                    path
                    for path in self.rglob(rest)
                    if len(path.parts) == len(self.parts) + 2
                    and fnmatch.fnmatchcase(path.parts[-2], first)
                ]
            else:
                refuse(self, f"'{pattern}' is looked for in file systems only")
        except FileNotFoundError:
            found = []
        return iter(found)

    # --- reading ---------------------------------------------------------------------------

    def read_bytes(self) -> bytes:
        """Read an object: one request."""
        with _named(self):
            files, key = self._place()
            try:  # without a range, s3fs would ask for the size first
                return bytes(files.cat_file(key, start=0))
            except FileNotFoundError:
                raise
            except OSError:  # an empty object has no ranges
                if self.stat().st_size:
                    raise
                return b""

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """Read an object as text."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def open(  # type: ignore[override]  # for reading only
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open an object that has been read."""
        if mode not in ("r", "rb"):
            refuse(self, "cannot be opened for writing, only replaced as a whole")
        content = io.BytesIO(self.read_bytes())
        if mode == "rb":
            return content
        return io.TextIOWrapper(content, encoding or "utf-8", errors, newline)

    # --- changing --------------------------------------------------------------------------

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Do nothing: prefixes need not be made."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete an object."""
        with _named(self):
            files, key = self._place(writing=True)
            if not missing_ok and not self.is_file():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
            try:
                files.rm_file(key)
            except FileNotFoundError:  # where deleting what is not there is an error
                if not missing_ok:
                    raise

    def put(self, source: Path) -> None:
        """Upload a local file; readers see the old object or the new one."""
        with _named(self):
            files, key = self._place(writing=True)
            files.put_file(os.fspath(source), key)

    def put_all(self, root: Path, names: Sequence[str]) -> None:
        """Upload local files, several at a time, in any order."""
        if not names:
            return
        with _named(self):
            files, key = self._place(writing=True)
            sources = [os.fspath(root / name) for name in names]
            files.put(sources, [f"{key}/{name}" for name in names])

    def _place(self, *, writing: bool = False) -> tuple[Any, str]:
        """Return the file system, and the name of the object in it."""
        if not self.is_absolute():
            raise ValueError(f"{self.parts}: not a URL")
        if writing and self.scheme not in OBJECT_STORES:
            stores = ", ".join(sorted(OBJECT_STORES))
            refuse(
                self,
                f"nothing is written to {self.scheme}://, where a reader could see half of an "
                f"upload, only to {stores}",
            )
        from fsspec.core import url_to_fs

        # A listing that is kept is out of date once another machine writes.
        try:
            files, key = url_to_fs(str(self), use_listings_cache=False)
        except ValueError as error:
            raise LocalOnlyError(f"{self}: {error}") from error
        return files, str(key)


def read_ranges(
    requests: Sequence[tuple[RemotePath, int, int | None]],
) -> list[bytes]:
    """Read bytes [start, end) of objects of one store, all requests at a time.

    Parameters
    ----------
    requests : sequence of (path, start, end)
        (path, -n, None): the last n bytes.

    Returns
    -------
    contents : list of bytes
        Fewer bytes than were asked for where the object ends.

    Raises
    ------
    FileNotFoundError
        If an object is missing.
    """
    if not requests:
        return []
    first = requests[0][0]
    with _named(first):
        places = [path._place() for path, _, _ in requests]
        files = places[0][0]
        found = files.cat_ranges(
            [key for _, key in places],
            [start for _, start, _ in requests],
            [end for _, _, end in requests],
            on_error="return",
        )
    for (path, _, _), content in zip(requests, found, strict=True):
        if isinstance(content, Exception):
            with _named(path):
                raise content
    return list(found)


@contextmanager
def _named(path: RemotePath) -> Iterator[None]:
    """Turn what the libraries of a store raise into `OSError` with the URL."""
    try:
        yield
    except TilingError:
        raise
    except ModuleNotFoundError:
        raise
    except ImportError as error:  # fsspec's own, which names the package in its sentence
        if path.scheme in ("s3", "s3a"):
            raise ModuleNotFoundError("No module named 's3fs'", name="s3fs") from error
        raise LocalOnlyError(f"{path}: {error}") from error
    except OSError as error:
        number = error.errno or errno.EIO
        if isinstance(error, FileNotFoundError):
            number = errno.ENOENT
        elif isinstance(error, PermissionError):
            number = errno.EACCES
        about = os.strerror(number) if number != errno.EIO else str(error)
        raise type_of(number)(number, about, str(path)) from error
    except Exception as error:  # of botocore, aiohttp, ...: no connection, no credentials
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", str(path)) from error


def type_of(number: int) -> type[OSError]:
    """Return the kind of `OSError` that stands for an error number."""
    return type(OSError(number, ""))


def _date_ns(found: dict[str, Any]) -> int:
    date = found.get("LastModified") or found.get("mtime") or found.get("created")
    if isinstance(date, datetime):
        date = date.replace(tzinfo=date.tzinfo or UTC).timestamp()
    return int(date * 10**9) if isinstance(date, (int, float)) else 0
