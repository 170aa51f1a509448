"""Columns of large CSV files as arrays: millions of rows in seconds.

Only plain files are read: no quotes, no apostrophes (`wsi_pipeline.csv_files.unguard`), no blank
lines, as many fields in each row as in the first, numbers without blanks around them. Whatever else
a file holds is left to the readers that go row by row, which name the line of an error: a caller
tries `read_columns` first, and goes row by row after `NotPlainError`. Both give the same values.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tiling.files import open_file

_CHUNK_BYTES = 2**22
_NUMBER = b"0123456789+-.eE"
_MOST_DIGITS = 15  # of a whole number that float64 knows exactly
_LONGEST_NUMBER = 40  # characters
_MOST_BYTES = 2**26  # of a column's fields in one chunk, padded to the longest of them
_BOM = b"\xef\xbb\xbf"
_COMMA, _NEWLINE, _MINUS, _ZERO = b",\n-0"


class NotPlainError(Exception):
    """The file is to be read row by row."""


@dataclass(frozen=True)
class Layout:
    """Which columns are read."""

    is_header: bool  # the first row names the columns
    numbers: tuple[int, ...]
    names: tuple[int, ...] = ()  # text in which few values repeat


@dataclass(frozen=True)
class Columns:
    """The columns of a file, N rows."""

    first_line: int  # of the rows, from 1; each row is a line
    numbers: list[NDArray[np.float64]]  # (N,) each; NaN where a field is empty
    codes: list[NDArray[np.int32]]  # (N,) each; index into the names
    names: list[list[str]]  # in the order in which they first appear, without blanks around them


def read_columns(path: Path, find_layout: Callable[[list[str]], Layout | None]) -> Columns:
    """Read some columns of a plain CSV file.

    Parameters
    ----------
    path : Path
    find_layout : callable
        Chooses the columns by the fields of the first row; None: the file is to be read row by row.

    Raises
    ------
    NotPlainError
        If the file is not plain, or cannot be read.
    """
    layout: Layout | None = None
    numbers: list[list[NDArray[np.float64]]] = []
    texts: list[_Names] = []
    width = 0
    for rows in _iterate_rows(path):
        part = rows
        if layout is None:
            layout, width = find_layout(rows.row(0)), rows.n_columns
            if layout is None:
                raise NotPlainError
            numbers, texts = [[] for _ in layout.numbers], [_Names() for _ in layout.names]
            part = rows.after_header() if layout.is_header else rows
        if part.n_columns != width:
            raise NotPlainError
        for column, values in zip(layout.numbers, numbers, strict=True):
            values.append(part.numbers(column))
        for column, text in zip(layout.names, texts, strict=True):
            text.add(*part.names(column))
    if layout is None:  # an empty file
        raise NotPlainError
    return Columns(
        2 if layout.is_header else 1,
        [np.concatenate(values) for values in numbers],
        [np.concatenate(text.codes) for text in texts],
        [list(text.code_by_name) for text in texts],
    )


class _Names:
    """Names of all chunks, numbered as they appear."""

    def __init__(self) -> None:
        self.code_by_name: dict[str, int] = {}
        self.codes: list[NDArray[np.int32]] = []

    def add(self, codes: NDArray[np.int64], names: Sequence[str]) -> None:
        known, first = np.unique(codes, return_index=True)
        renumbered = np.zeros(len(names), np.int32)
        for code in known[np.argsort(first)].tolist():
            number = self.code_by_name.setdefault(names[code], len(self.code_by_name))
            renumbered[code] = number
        self.codes.append(renumbered[codes])


@dataclass(frozen=True)
class _Rows:
    """Consecutive rows of a plain CSV file."""

    data: NDArray[np.uint8]  # of these rows
    starts: NDArray[np.int64]  # (N, C) where in `data` each field starts
    ends: NDArray[np.int64]  # (N, C)

    @property
    def n_columns(self) -> int:
        return int(self.starts.shape[1])

    def row(self, i: int) -> list[str]:
        """Return the fields of one row, without the blanks around them."""
        pairs = zip(self.starts[i], self.ends[i], strict=True)
        return [self.data[a:b].tobytes().decode().strip() for a, b in pairs]

    def after_header(self) -> "_Rows":
        return _Rows(self.data, self.starts[1:], self.ends[1:])

    def numbers(self, column: int) -> NDArray[np.float64]:
        """Read a column of numbers: (N,), NaN for empty fields."""
        fields, lengths = self._fields(column)
        values = np.full(len(fields), np.nan)
        filled = lengths > 0
        if filled.any():
            values[filled] = _parse(fields[filled], lengths[filled])
        return values

    def names(self, column: int) -> tuple[NDArray[np.int64], list[str]]:
        """Read a column of text: (N,) index of each row's name, and the names."""
        fields, _ = self._fields(column)
        if not len(fields):
            return np.zeros(0, np.int64), []
        text = fields.view(f"S{fields.shape[1]}").ravel()
        starts = np.flatnonzero(np.append(True, text[1:] != text[:-1]))  # of runs of one name
        distinct, code = np.unique(text[starts], return_inverse=True)
        codes = np.repeat(code, np.diff(np.append(starts, len(text))))
        return codes, [name.decode().strip() for name in distinct.tolist()]

    def _fields(self, column: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the fields of a column, padded with zeros to the longest: (N, L), and lengths."""
        start, lengths = self.starts[:, column], self.ends[:, column] - self.starts[:, column]
        longest = max(1, int(lengths.max(initial=0)))
        if longest * len(start) > _MOST_BYTES:
            raise NotPlainError
        place = np.arange(longest)
        fields = self.data[np.minimum(start[:, None] + place, self.data.size - 1)]
        fields[place >= lengths[:, None]] = 0
        return fields, lengths


def _parse(fields: NDArray[np.uint8], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Parse numbers, (N, L) bytes padded with zeros, as `float` does."""
    negative = fields[:, 0] == _MINUS
    digits = fields - _ZERO  # what is below "0" wraps around
    digits[negative, 0] = 0
    is_whole = ((digits < 10) | (fields == 0)).all() and (lengths > negative).all()
    if is_whole and fields.shape[1] <= _MOST_DIGITS:
        values = np.zeros(len(fields), np.int64)
        for place in range(fields.shape[1]):
            values = np.where(place < lengths, values * 10 + digits[:, place], values)
        found = values.astype(np.float64)
        return np.where(negative, -found, found)
    allowed = np.zeros(256, bool)
    allowed[[0, *_NUMBER]] = True
    if fields.shape[1] > _LONGEST_NUMBER or not allowed[fields].all():
        raise NotPlainError
    try:
        return fields.view(f"S{fields.shape[1]}").ravel().astype(np.float64)
    except ValueError as error:
        raise NotPlainError from error


def _iterate_rows(path: Path) -> Iterator[_Rows]:
    try:
        for chunk in _iterate_lines(path):
            yield _split(chunk)
    except OSError as error:
        raise NotPlainError from error


def _iterate_lines(path: Path) -> Iterator[bytes]:
    """Read whole lines, some MiB at a time, each ending with a line feed."""
    with open_file(path, "rb") as file:
        rest = file.read(len(_BOM)).removeprefix(_BOM)
        while more := file.read(_CHUNK_BYTES):
            data = rest + more
            cut = data.rfind(b"\n") + 1
            if cut:
                yield data[:cut].replace(b"\r\n", b"\n")
            rest = data[cut:]
            if len(rest) > _MOST_BYTES:
                raise NotPlainError
    if rest:
        yield rest + b"\n"


def _split(chunk: bytes) -> _Rows:
    """Find the fields of whole lines."""
    if any(special in chunk for special in (b'"', b"'", b"\r", b"\0")):
        raise NotPlainError
    try:
        chunk.decode()
    except UnicodeDecodeError as error:
        raise NotPlainError from error
    data = np.frombuffer(chunk, np.uint8)
    separators = np.flatnonzero((data == _COMMA) | (data == _NEWLINE))
    n_columns = chunk.count(b",", 0, chunk.index(b"\n")) + 1
    if separators.size % n_columns:
        raise NotPlainError
    ends = separators.reshape(-1, n_columns)
    is_newline = data[ends] == _NEWLINE
    if not is_newline[:, -1].all() or is_newline[:, :-1].any():
        raise NotPlainError
    starts = np.append(0, separators[:-1] + 1).reshape(-1, n_columns)
    if n_columns == 1 and (starts == ends).any():
        raise NotPlainError  # blank lines
    return _Rows(data, starts, ends)
