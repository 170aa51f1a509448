"""File systems as users have them: full, read-only. Mounting them needs root; else tests skip."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def _mounted(folder: Path, *arguments: str) -> Iterator[Path]:
    done = subprocess.run(["mount", *arguments, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def small_disk(folder: Path, *, kib: int) -> Iterator[Path]:
    """A file system of this size, on a folder that is there."""
    with _mounted(folder, "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs") as mounted:
        yield mounted


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """The folder as it is, but not even root can write to it."""
    with _mounted(folder, "--bind", str(folder)) as mounted:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield mounted
