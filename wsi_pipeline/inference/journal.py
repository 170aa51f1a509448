"""What a slide's prediction has done so far, so that a killed one continues where it stopped.

A journal is a file next to the marks of the run: a line of JSON that names what it belongs to, then
one record per batch, appended in the order of the rows:

    first row, number of rows, CRC-32, uint32 each | scores, float32 each (row by row)

all little-endian. The CRC covers the key of the journal, the numbers and the scores. A record that
a kill cut short fails it and is dropped, with all behind it.

There is no lock, as many cluster file systems have none: where two processes score one slide, each
appends its records, and a reader takes those that continue what it has, whichever wrote them.
Scores of equal keys are equal. A journal is removed when the score file is written.
"""

import json
import logging
import struct
import zlib
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
from numpy.typing import NDArray

from tiling.urls import is_url

log = logging.getLogger(__name__)

_RECORD = struct.Struct("<III")
_FORMAT = 2


class Journal:
    """The batches that are done, of one slide and one model.

    Parameters
    ----------
    path : Path
        Of the file; None: nothing is kept.
    key : str
        Of the settings and inputs. A journal with another key is started again.
    columns : int, optional
        Numbers of each row; None: one, and batches are (B,).

    Attributes
    ----------
    batches : list of (B,) or (B, columns) float32
        What was done before, batch by batch; NaN: unreadable.
    """

    def __init__(self, path: Path | None, *, key: str, columns: int | None = None) -> None:
        # Object stores do not append: there, a killed prediction begins its slide again.
        self._path = None if path is None or is_url(path) else path
        self._columns = columns
        self._header = json.dumps({"format": _FORMAT, "key": key}).encode() + b"\n"
        self._file: IO[bytes] | None = None
        self._n_rows = 0  # in the batches so far
        self.batches: list[NDArray[np.float32]] = []

    def __enter__(self) -> "Journal":
        if self._path is None:
            return self
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+b", buffering=0)
        self._read(self._file)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def append(self, scores: NDArray[np.float32]) -> None:
        """Keep a batch; after this call a killed process does not lose it."""
        if self._file is not None:
            data = scores.astype("<f4").tobytes()
            checksum = self._checksum(self._n_rows, len(scores), data)
            # One system call: what other processes append comes before or after it.
            self._file.write(_RECORD.pack(self._n_rows, len(scores), checksum) + data)
            self._n_rows += len(scores)

    def _checksum(self, first: int, n_rows: int, data: bytes) -> int:
        return zlib.crc32(data, zlib.crc32(struct.pack("<II", first, n_rows) + self._header))

    def _read(self, file: IO[bytes]) -> None:
        file.seek(0)
        content = file.read()
        if not content.startswith(self._header):
            file.truncate(0)
            file.write(self._header)
            return
        place = len(self._header)
        while (record := self._read_record(content, place)) is not None:
            first, batch = record
            place += _RECORD.size + batch.nbytes
            if first == self._n_rows:  # else another process has written these rows, too
                self.batches.append(batch)
                self._n_rows += len(batch)
        file.truncate(place)

    def _read_record(self, content: bytes, place: int) -> tuple[int, NDArray[np.float32]] | None:
        if len(content) < place + _RECORD.size:
            return None
        first, n_rows, checksum = _RECORD.unpack_from(content, place)
        size = 4 * n_rows * (self._columns or 1)
        data = content[place + _RECORD.size : place + _RECORD.size + size]
        is_whole = n_rows > 0 and len(data) == size
        if not is_whole or self._checksum(first, n_rows, data) != checksum:
            return None
        scores = np.frombuffer(data, "<f4").astype(np.float32)
        return first, scores.reshape(n_rows, self._columns) if self._columns else scores
