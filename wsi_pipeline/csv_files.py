"""Reading and writing of CSV files, with protection against formula injection.

Spreadsheets interpret a cell that begins with ``=``, ``+``, ``-`` or ``@`` as a formula. Such text
is written with a leading apostrophe, the spreadsheets' own mark for text, which is removed when the
file is read here. Numbers such as ``-1`` are not affected. A float is written as the shortest text
that reads back as the same float64.

References
----------
.. [1] OWASP, "CSV Injection", https://owasp.org/www-community/attacks/CSV_Injection
"""

import csv
import difflib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.files import open_file, update_text, write_aside
from wsi_pipeline.errors import PipelineError

# Any apostrophes, then a character that begins a formula, including full-width forms and the
# whitespace that spreadsheets skip (OWASP).
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_ROWS_AT_ONCE = 2**16
_SPECIAL = re.compile(r'[",\r\n]')


def guard(text: str) -> str:
    """Prefix text that a spreadsheet would interpret as a formula.

    Examples
    --------
    >>> guard("=1+1"), guard("'=1+1"), guard("tumor_001"), guard("-0.5")
    ("'=1+1", "''=1+1", 'tumor_001', '-0.5')
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def unguard(cell: str) -> str:
    """Remove the prefix that `guard` adds.

    Examples
    --------
    >>> unguard("'=1+1"), unguard("'quoted'")
    ('=1+1', "'quoted'")
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def format_row(cells: Iterable[Any]) -> str:
    """Format one line of a CSV file; None becomes an empty field.

    Examples
    --------
    >>> format_row(["a,b", None, 0.1, -1, "=1"])
    '"a,b",,0.1,-1,\\'=1\\n'
    """
    fields = [_format_cell(cell) for cell in cells]
    line = ",".join(fields)
    return f"{line}\n" if line or len(fields) > 1 else '""\n'  # a blank line is no row


def _format_cell(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return repr(float(cell))  # NumPy's floats have another repr
    if not isinstance(cell, str):
        return str(cell)
    text = guard(cell)
    return '"{}"'.format(text.replace('"', '""')) if _SPECIAL.search(text) else text


def format_csv(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Format a whole CSV file."""
    return "".join(map(format_row, (header, *rows)))


def write_csv(
    path: Path,
    header: Sequence[str],
    rows: Iterable[Iterable[Any]],
    *,
    undecodable: str = "backslashreplace",
) -> None:
    """Write a CSV file in UTF-8 atomically; None becomes an empty field.

    Parameters
    ----------
    undecodable : str
        Handling of text that UTF-8 cannot encode, as in `open`: parts of file names in another
        encoding, which messages may contain. Default: an escape.
    """
    with (
        write_aside(path) as scratch,
        scratch.open("w", newline="", encoding="utf-8", errors=undecodable) as file,
    ):
        file.write(format_row(header))
        file.writelines(map(format_row, rows))


def write_tables(
    path: Path, header: Sequence[str], tables: Iterable[Sequence[Sequence[Any] | NDArray[Any]]]
) -> None:
    """Write tables one below the other as one CSV file; for millions of rows.

    Parameters
    ----------
    path : Path
    header : sequence of str
        At least two columns.
    tables : iterable of columns
        Of each table its columns, of one length: arrays of whole numbers; of floats, whose NaN is
        an empty field; or sequences of cells as of `write_csv`.
    """
    with write_aside(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
        file.write(format_row(header))
        for columns in tables:
            if len({*map(len, columns)}) > 1:
                raise ValueError(f"columns of {', '.join(str(len(c)) for c in columns)} cells")
            for start in range(0, len(columns[0]), _ROWS_AT_ONCE):
                part = [column[start : start + _ROWS_AT_ONCE] for column in columns]
                cells = zip(*map(_format_column, part), strict=True)
                file.write("\n".join(map(",".join, cells)) + "\n")


def _format_column(column: Sequence[Any] | NDArray[Any]) -> Iterable[str]:
    if not isinstance(column, np.ndarray):
        known = {cell: _format_cell(cell) for cell in set(column)}  # names repeat
        return map(known.__getitem__, column)
    if column.dtype.kind != "f":
        distinct, place = np.unique(column, return_inverse=True)  # so do positions and labels
        known = dict(enumerate(map(str, distinct.tolist())))
        return map(known.__getitem__, place.tolist())
    cells = list(map(repr, column.astype(np.float64).tolist()))
    for i in np.flatnonzero(np.isnan(column)).tolist():
        cells[i] = ""
    return cells


def update_csv(
    path: Path,
    header: Sequence[str],
    rows: Iterable[Iterable[Any]],
    *,
    undecodable: str = "backslashreplace",
) -> None:
    """Write a CSV file unless it contains these rows already; works in a read-only folder then.

    Parameters are those of `write_csv`.
    """
    update_text(path, format_csv(header, rows), errors=undecodable)


def iterate_csv(
    path: Path, *, error: type[PipelineError], undecodable: str = "strict"
) -> Iterator[tuple[int, list[str]]]:
    """Read a CSV file row by row, including the header; blank lines are skipped.

    Parameters
    ----------
    path : Path
    error : type
        Kind of the error.
    undecodable : str
        Handling of bytes that are not UTF-8, as in `open`.

    Yields
    ------
    line : int
        Number of the row's last line, from 1.
    fields : list of str

    Raises
    ------
    error
        If the file cannot be read or is not a CSV in UTF-8.
    """
    csv.field_size_limit(sys.maxsize)  # the default is less than a slide's list of lesions may take
    try:
        with open_file(path, newline="", encoding="utf-8-sig", errors=undecodable) as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                if row:
                    yield reader.line_num, [unguard(cell) for cell in row]
    except (UnicodeDecodeError, csv.Error) as cause:
        raise error(f"{path}: not a CSV file in UTF-8 ({cause})") from cause
    except OSError as cause:
        raise error(f"{path}: cannot be read ({cause.strerror})") from cause


def read_csv(path: Path, *, error: type[PipelineError]) -> list[dict[str, str]]:
    """Read a CSV file with a header as one mapping per row; missing last fields are empty.

    Raises
    ------
    error
        If the file cannot be read or is not a CSV in UTF-8.
    """
    rows = iterate_csv(path, error=error)
    _, header = next(rows, (0, []))
    return [dict(as_mapping(header, cells)) for _, cells in rows]


def check_spelling(
    path: Path, names: Sequence[str], known: Sequence[str], *, error: type[PipelineError]
) -> None:
    """Refuse a column that nearly has a known name: its content would be ignored silently.

    Other columns are the user's own.

    Raises
    ------
    error
        Naming the known column.
    """
    for name in names:
        close = difflib.get_close_matches(name.strip().lower(), known, n=1, cutoff=0.8)
        if name not in known and close and close[0] not in names:
            raise error(f"{path}: unknown column '{name}'; did you mean '{close[0]}'?")


def describe_unused(path: Path, names: Sequence[str], known: Iterable[str]) -> list[str]:
    """Name the columns of a file that nothing reads, in one line or none.

    Examples
    --------
    >>> describe_unused(Path("m.csv"), ["slide", "age", ""], ["slide", "label"])
    ['m.csv: columns not used: age']
    """
    used = set(known)
    unused = [name for name in names if name.strip() and name not in used]
    return [f"{path}: columns not used: {', '.join(unused)}"] if unused else []


def as_mapping(header: Sequence[str], cells: Sequence[str]) -> Mapping[str, str]:
    """Pair a row's fields with the header's; those that are missing are empty."""
    return dict(zip(header, [*cells, *[""] * (len(header) - len(cells))], strict=False))
