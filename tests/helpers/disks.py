"""File systems as users have them: full, read-only, without power. Root is needed; else skipped."""

import contextlib
import fcntl
import os
import shutil
import struct
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


SHUT_DOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN
LOSE_LOG = struct.pack("I", 2)  # EXT4_GOING_FLAGS_NOLOGFLUSH: nothing more is written


class Disk:
    """A file system in a file, whose power can be cut."""

    def __init__(self, image: Path, folder: Path) -> None:
        self._image = image
        self.folder = folder

    def mount(self) -> None:
        command = ["mount", "-o", "loop", str(self._image), str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount here: {done.stderr.strip()}")

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def lose_power(self) -> None:
        """Lose everything that was not flushed, and come up again."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUT_DOWN, LOSE_LOG)
        finally:
            os.close(descriptor)
        self.unmount()
        self.mount()


@contextlib.contextmanager
def disk_with_a_switch(folder: Path, *, mib: int) -> Iterator[Disk]:
    """An ext4 file system, mounted on a new folder."""
    make = shutil.which("mkfs.ext4", path=os.environ.get("PATH", "") + ":/sbin:/usr/sbin")
    if make is None or os.geteuid() != 0:
        pytest.skip("needs root and mkfs.ext4")
    image = folder.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(mib * 2**20)
    subprocess.run([make, "-q", str(image)], check=True)
    folder.mkdir()
    disk = Disk(image, folder)
    disk.mount()
    try:
        yield disk
    finally:
        disk.unmount()


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """The folder as it is, but not writable: for root, by a mount."""
    if os.geteuid() != 0:
        paths = [folder, *folder.rglob("*")]
        modes = {path: path.stat().st_mode for path in paths}
        for path, mode in modes.items():
            path.chmod(mode & ~0o222)
        try:
            yield folder
        finally:
            for path, mode in modes.items():
                path.chmod(mode)
        return
    with _mounted(folder, "--bind", str(folder)) as mounted:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield mounted
