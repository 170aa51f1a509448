"""CSV of the evaluation: errors with file and line, numbers parsed as people write them.

The format itself is that of all CSVs here (`wsi_pipeline.csv_files`).
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from wsi_pipeline.csv_files import iterate_csv
from wsi_pipeline.errors import EvaluationError

FAR = 2**53  # beyond it float64 does not know whole numbers; no slide reaches so far

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
    for line, row in iterate_csv(path, error=EvaluationError):
        fields = [field.strip() for field in row]
        if any(fields):
            yield line, fields


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


def parse_coordinate(where: str, name: str, text: str) -> float:
    """Read a position in level-0 px.

    Raises
    ------
    EvaluationError
        Naming `where` (file and line) and `name` (the column).
    """
    value = parse_number(text)
    if value is None or not math.isfinite(value) or abs(value) > FAR:
        raise EvaluationError(f"{where}: {name} '{text}' is not a position in level-0 pixels")
    return value


# Names that programs give the columns, besides our own; without case, blanks and punctuation.
_ALIASES = {
    "prob": {"probability", "score", "confidence", "p"},
    "x": {"xcoordinate", "xcoord"},
    "y": {"ycoordinate", "ycoord"},
    "slide_id": {"slide", "slidename", "image", "imageid", "imagename", "file", "filename", "case"},
    "label": {"type"},  # CAMELYON16's reference.csv
}


def find_column(header: Sequence[str], name: str) -> int | None:
    """Find a column by its name or another common name of it.

    Returns
    -------
    place : int or None
        None if there is none, or there are several and none of them is called `name` itself.

    Examples
    --------
    >>> find_column(["Confidence", "X coordinate"], "x")
    1
    """
    plain = ["".join(c for c in field.lower() if c.isalnum()) for field in header]
    own = name.replace("_", "")
    exact = [i for i, field in enumerate(plain) if field == own]
    found = exact or [i for i, field in enumerate(plain) if field in _ALIASES.get(name, ())]
    return found[0] if len(found) == 1 else None
