"""What a slide's prediction has done so far, so that a killed one goes on where it stopped.

A journal is a file beside the marks of the run: a line of JSON that says what it belongs to, then
one record per batch, appended in the order of the rows:

    number of patches, uint32 | CRC-32 of the scores, uint32 | scores, float32 each

all little-endian. A record that a kill cut short has a wrong length or sum and is dropped, with all
behind it. Nobody else reads a journal, and it is removed when the score file is written.
"""

import fcntl
import json
import logging
import struct
import zlib
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

_RECORD = struct.Struct("<II")


class Journal:
    """The batches that are done, of one slide and one model.

    Parameters
    ----------
    path : Path
        Of the file; None: nothing is kept.
    key : str
        Of the settings and inputs. A journal of another key is begun anew.

    Attributes
    ----------
    batches : list of (B,) float32
        What was done before, batch by batch; NaN: unreadable.
    """

    def __init__(self, path: Path | None, *, key: str) -> None:
        self._path = path
        self._key = key
        self._file: IO[bytes] | None = None
        self.batches: list[NDArray[np.float32]] = []

    def __enter__(self) -> "Journal":
        if self._path is None:
            return self
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another process scores this slide too; both end with the same file
            log.info("%s is in use by another process; going on without it", self._path)
            file.close()
            return self
        self._file = file
        self._read(file)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()  # gives the lock back
            self._file = None

    def append(self, scores: NDArray[np.float32]) -> None:
        """Keep a batch; after this call a killed process does not lose it."""
        if self._file is not None:
            data = scores.astype("<f4").tobytes()
            self._file.write(_RECORD.pack(len(scores), zlib.crc32(data)) + data)
            self._file.flush()

    def _read(self, file: IO[bytes]) -> None:
        header = json.dumps({"key": self._key}).encode() + b"\n"
        file.seek(0)
        if file.read(len(header)) != header:
            file.truncate(0)
            file.write(header)
            file.flush()
            return
        whole = len(header)
        while batch := _read_record(file):
            self.batches.append(batch[0])
            whole = file.tell()
        file.truncate(whole)
        file.seek(whole)


def _read_record(file: IO[bytes]) -> tuple[NDArray[np.float32]] | None:
    head = file.read(_RECORD.size)
    if len(head) < _RECORD.size:
        return None
    n, crc = _RECORD.unpack(head)
    data = file.read(4 * n)
    if n == 0 or len(data) < 4 * n or zlib.crc32(data) != crc:
        return None
    return (np.frombuffer(data, "<f4").astype(np.float32),)
