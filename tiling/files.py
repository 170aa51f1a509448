"""Write aside, then rename: nothing unfinished ever looks finished."""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Give a scratch path beside `path`; on success it takes the place of `path`, else it is removed.

    The scratch path may be made a file or a folder. Its name starts with a dot and ends with
    ``.part``, so no reader takes it for a result. A rename within one folder is atomic: a reader
    sees the old output or the new one, never half of either.

    Yields
    ------
    scratch : Path
        Does not exist yet; its folder does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.part"
    try:
        yield scratch
        if scratch.is_dir() and path.exists():
            _replace_folder(scratch, path)
        else:
            os.replace(scratch, path)
    finally:
        _remove(scratch)


def _replace_folder(scratch: Path, path: Path) -> None:
    # A non-empty folder cannot be renamed over: move the old one aside first.
    old = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.old.part"
    os.replace(path, old)
    os.replace(scratch, path)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)  # only ever a scratch folder this module named itself
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> int:
    """Remove the scratch files that killed runs left in `folder`; returns how many."""
    leftovers = [p for p in folder.glob(".*.part")] if folder.is_dir() else []
    for path in leftovers:
        _remove(path)
    return len(leftovers)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, whole or not at all. NaN is refused: use None."""
    with write_aside(path) as scratch:
        scratch.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with write_aside(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


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
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
