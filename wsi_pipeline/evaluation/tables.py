"""CSV in and out: plain rows, errors with file and line, numbers that read back as the same.

A float is written as the shortest text that reads back as the same float64.
"""

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tiling.files import open_file, write_aside
from wsi_pipeline.errors import EvaluationError

_FAR = 2**53  # beyond it float64 does not know whole numbers; no slide reaches so far

Cell = str | int | float | None


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Read a CSV file's rows that hold anything.

    Yields
    ------
    line, fields : int from 1, list of str
        Without the blanks around each field.

    Raises
    ------
    EvaluationError
        If the file cannot be read or is no CSV in UTF-8.
    """
    try:
        with open_file(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                fields = [field.strip() for field in row]
                if any(fields):
                    yield reader.line_num, fields
    except (UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read ({error.strerror})") from error


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Write a CSV file, whole or not at all; None becomes an empty field."""
    with write_aside(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([_text(cell) for cell in row] for row in rows)


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    return repr(float(cell)) if isinstance(cell, float) else str(cell)


def parse_number(text: str) -> float | None:
    """Read a number as people write it; None if it is none (Python's ``1_000`` is none)."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def parse_score(where: str, name: str, text: str) -> float:
    """Read a score in [0, 1].

    Raises
    ------
    EvaluationError
        Naming `where` (file and line) and `name` (the column).
    """
    value = parse_number(text)
    if value is None or not 0 <= value <= 1:
        raise EvaluationError(f"{where}: {name} '{text}' is not a number from 0 to 1")
    return value


def parse_pixel(where: str, name: str, text: str) -> int:
    """Read a whole number of level-0 px; ``120.0``, as spreadsheets write it, is one."""
    value = parse_number(text)
    if value is None or not math.isfinite(value) or value != int(value) or abs(value) > _FAR:
        raise EvaluationError(f"{where}: {name} '{text}' is not a whole number of level-0 pixels")
    return int(value)
