"""Which slide files have the same content, found without reading most of them.

Files of different sizes differ. Of those of one size a few samples are compared, and only where
these agree the fingerprints, which decide what counts as the same content.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from tiling.errors import SlideError
from tiling.files import open_file
from tiling.listing.samples import fingerprint_file
from tiling.listing.slide_files import may_be_dicom, read_headers
from tiling.listing.slide_parts import list_parts
from tiling.threads import map_in_threads

_map = partial(map_in_threads, threads=16)  # that wait for a network drive
_SAMPLES, _SAMPLE_BYTES = 8, 4096  # spread evenly over a file


def find_same_content(paths: Sequence[Path]) -> list[int | None]:
    """Find the slides that are copies of an earlier one, or links to it.

    DICOM files are the same if they are of one series, since each of its files opens the slide.
    Of the formats with several files (MIRAX, Hamamatsu VMS) all are compared. Files that are
    missing or empty are copies of none.

    Returns
    -------
    same_as : list of int, or None
        For each path the number of the first with its content; None for that first one itself.
    """
    files = list(_map(_identify, paths))
    one_by_file = {file: number for number, file in reversed(list(enumerate(files))) if file}
    keys: dict[int, Hashable] = {n: file[2] for file, n in one_by_file.items()}
    series = _find_series(paths, one_by_file.values())
    alike = _find_shared(keys, keys.keys() - series.keys())
    for refine in (_measure, _sample, _fingerprint):
        found = _map(partial(_try, refine), [paths[number] for number in alike])
        keys |= {n: (keys[n], value) for n, value in zip(alike, found, strict=True)}
        alike = _find_shared(keys, alike)
    # What no other file shares so far is of its own content.
    keys = {number: number for number in keys} | {n: keys[n] for n in alike} | series
    first: dict[Hashable, int] = {}
    same_as: list[int | None] = []
    for number, file in enumerate(files):
        key = keys[one_by_file[file]] if file else number
        earlier = first.setdefault(key, number)
        same_as.append(None if earlier == number else earlier)
    return same_as


def _identify(path: Path) -> tuple[int, int, int] | None:
    """Return what is one file's alone, and its size; None if it is missing or empty."""
    try:
        facts = path.stat()
    except (OSError, ValueError):
        return None
    return (facts.st_dev, facts.st_ino, facts.st_size) if facts.st_size else None


def _find_series(paths: Sequence[Path], numbers: Iterable[int]) -> dict[int, Hashable]:
    """Find the series of those paths that are DICOM files."""
    dicom = [number for number in numbers if may_be_dicom(paths[number].name)]
    headers = read_headers([paths[number] for number in dicom])
    return {n: h.series for n, h in zip(dicom, headers, strict=True) if h and h.series}


def _find_shared(keys: Mapping[int, Hashable], numbers: Iterable[int]) -> list[int]:
    """Choose the numbers whose key another one of them has as well."""
    by_key: dict[Hashable, list[int]] = defaultdict(list)
    for number in numbers:
        by_key[keys[number]].append(number)
    return [number for found in by_key.values() if len(found) > 1 for number in found]


def _try(refine: Callable[[Path], Hashable], path: Path) -> Hashable:
    """Call a function on a file; one that cannot be read is like no other."""
    try:
        return refine(path)
    except (OSError, SlideError):
        return object()


def _measure(path: Path) -> Hashable:
    return tuple(part.stat().st_size for part in _parts(path))


def _sample(path: Path) -> Hashable:
    """Hash a few samples of a slide's files."""
    digest = hashlib.sha256()
    for part in _parts(path):
        with open_file(part, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            for number in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.digest()


def _fingerprint(path: Path) -> Hashable:
    return tuple(fingerprint_file(part) for part in _parts(path))


def _parts(path: Path) -> list[Path]:
    """List all files of a slide, the one that leads to them first."""
    return [part.path for part in list_parts(path)]
