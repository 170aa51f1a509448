"""What a slide's files hold: one digest of all their bytes, read once while they stay as they are.

A slide that was copied again must be noticed, wherever its bytes differ, so all of them are hashed,
of every file that the slide consists of. That takes as long as reading the slide, so the digest is
kept, in memory and if wanted in a small file, together with the state of the files: names, sizes,
and the times of the last change of content and of status. As long as that is the same, nothing is
read again. A slide that was moved or touched is read again, and has the same digest.

The time of the last change of status (``ctime``) reveals that a slide was copied again along with
its date. It is not written into the small file but is that file's own date, so that the file
holds the same bytes wherever a data set is copied to.
"""

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tiling.errors import SlideError
from tiling.files import digest_file, digest_json, open_file, read_json_object, write_json
from tiling.listing.samples import fingerprint_file
from tiling.listing.slide_parts import SlidePart, explain_unreadable, list_parts
from tiling.urls import is_url

log = logging.getLogger(__name__)

KIND = "sha256:"  # before the digest; fingerprints without it are of samples (earlier versions)
UNREAD = KIND + "0" * 64  # in place of a digest that is not needed
# A file that changed so recently may change again without another time: most file systems count in
# steps of some milliseconds.
RECENT_NS = 100_000_000
AHEAD_NS = 60_000_000_000  # the clock of a file server may be ahead; a date further ahead is wrong
ATTEMPTS = 2  # to read a slide that changes meanwhile, if only its permissions


def digest_content(path: Path, *, cache: Path | None = None) -> str:
    """Hash all bytes of a slide.

    Neither path nor date counts. Of a slide of one file it is the file's SHA-256; of several files
    (MIRAX, Hamamatsu VMS and VMU, a DICOM series) it is that of a list of theirs.

    Parameters
    ----------
    path : Path
        The slide, or the one file of it that is named in the manifest.
    cache : Path, optional
        Small file that keeps the digest between processes; written here. Where it cannot be
        written, the slide is read again next time.

    Returns
    -------
    content : ``sha256:`` and 64 hexadecimal digits

    Raises
    ------
    SlideError
        If a file cannot be read, or changes while it is.
    """
    for _ in range(ATTEMPTS):
        parts = list_parts(path)
        look = _look(path, parts)
        content = _recall(path, look, cache)
        if content is None:
            content = KIND + _hash_parts(path, parts)
            if look_at_files(path) != (look.state, look.changed_ns):
                continue
        _keep(path, look, content, cache)
        return content
    raise SlideError(
        f"{path.name}: changes while it is read; wait until it is copied whole, then run the same "
        "command again"
    )


def find_digest(path: Path, *, cache: Path | None = None) -> str | None:
    """Return a slide's digest if it is known; None where the slide would have to be read.

    Nothing is written.

    Raises
    ------
    SlideError
        If a file is missing.
    """
    return _recall(path, _look(path, list_parts(path)), cache)


def look_at_files(path: Path) -> tuple[str, int]:
    """Describe the state of a slide's files without reading them: the same while nothing changes.

    Raises
    ------
    SlideError
        If a file is missing.
    """
    look = _look(path, list_parts(path))
    return look.state, look.changed_ns


def is_made_from(fingerprint: str, path: Path, *, cache: Path | None = None) -> bool:
    """Whether a store's fingerprint of its slide is that of a slide's files.

    Parameters
    ----------
    fingerprint : str
        As `SlideInfo` has it; also that of samples, of earlier versions.
    path : Path
        The slide.
    cache : Path, optional
        See `digest_content`.

    Raises
    ------
    SlideError
        If the slide cannot be read.
    """
    if fingerprint.startswith(KIND):
        return digest_content(path, cache=cache) == fingerprint
    return fingerprint_file(path) == fingerprint


# --- hashing ---------------------------------------------------------------------------------


def _hash_parts(path: Path, parts: Sequence[SlidePart]) -> str:
    try:
        digests = [(part.label, digest_file(part.path)) for part in parts]
    except OSError as error:
        raise explain_unreadable(path, error) from error
    if len(digests) == 1:
        return digests[0][1]
    lines = sorted(f"{digest}  {label}\n" for label, digest in digests)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


# --- the state of the files -----------------------------------------------------------------


@dataclass(frozen=True)
class _Look:
    """The state of a slide's files at some moment."""

    state: str  # hash of names, sizes and times of content: no date of a scan is kept
    changed_ns: int  # last change of a file's status
    is_recent: bool  # a file changed so recently that another change may go unnoticed


def _look(path: Path, parts: Sequence[SlidePart]) -> _Look:
    facts, times, changed = [], [], 0
    for part in parts:
        try:
            # Opening queries the file server, where a mere stat may be answered from a cache.
            with open_file(part.path, "rb") as file:
                found = os.fstat(file.fileno())
        except OSError as error:
            raise explain_unreadable(path, error) from error
        facts.append((part.path.name, found.st_size, found.st_mtime_ns))
        times += [found.st_mtime_ns, found.st_ctime_ns]
        changed = max(changed, found.st_ctime_ns)
    state = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    now = time.time_ns()
    is_recent = any(-AHEAD_NS < now - changed_at < RECENT_NS for changed_at in times)
    return _Look(state, changed, is_recent)


# By absolute path, of this process: what `look_at_files` gave, and the content.
_known: dict[Path, tuple[tuple[str, int], str]] = {}
_lock = threading.Lock()


def _recall(path: Path, look: _Look, cache: Path | None) -> str | None:
    with _lock:
        seen, content = _known.get(path.absolute(), (("", 0), ""))
    if seen == (look.state, look.changed_ns):
        return content
    return None if cache is None else _read(cache, look)


def _keep(path: Path, look: _Look, content: str, cache: Path | None) -> None:
    if look.is_recent:
        return
    with _lock:
        _known[path.absolute()] = (look.state, look.changed_ns), content
    if cache is None or _read(cache, look) == content:
        return
    value = {"state": look.state, "content": content}
    try:
        if is_url(cache):  # where no date can be set
            value |= {"changed": _hash_date(look)}
        write_json(cache, value | {"check": _check(value)})
        if not is_url(cache):
            os.utime(cache, ns=(look.changed_ns, look.changed_ns))
    except OSError as error:  # a run folder may be read-only
        log.debug("%s: not kept (%s)", cache.name, error)


def _read(cache: Path, look: _Look) -> str | None:
    try:
        found = read_json_object(cache)
        if is_url(cache):
            is_same = found["changed"] == _hash_date(look)
        else:
            is_same = _is_date(cache.stat().st_mtime_ns, look.changed_ns)
        if not is_same or found["state"] != look.state or found["check"] != _check(found):
            return None
        return str(found["content"])
    except (OSError, ValueError, LookupError):
        return None


def _hash_date(look: _Look) -> str:
    return hashlib.sha256(str(look.changed_ns).encode()).hexdigest()


def _is_date(stored_ns: int, date_ns: int) -> bool:
    """Whether a file's date is the one that was set, in whatever units its file system keeps it."""
    return any(stored_ns == date_ns // unit * unit for unit in (1, 100, 1000, 10**6, 10**9))


def _check(value: dict[str, str]) -> str:
    """A checksum: what is damaged is not believed."""
    return digest_json([value["state"], value["content"]])
