"""Detections as CAMELYON16 exchanges them, in level-0 pixels.

One CSV per slide, ``prob,x,y``, or one CSV for all slides, ``slide_id,prob,x,y``; with a header,
the columns may be in any order. A position is a pixel; one that is not a whole number is rounded.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.contracts import Detections
from wsi_pipeline.csv_files import write_csv
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.csv_columns import Layout, NotPlainError, read_columns
from wsi_pipeline.evaluation.tables import (
    FAR,
    find_column,
    parse_coordinate,
    parse_number,
    parse_score,
    read_rows,
)

COLUMNS = ("prob", "x", "y")
SLIDE_COLUMN = "slide_id"


@dataclass(frozen=True)
class DetectionFile:
    """Detections of one slide, and where they are in their file."""

    path: Path
    detections: Detections
    lines: NDArray[np.int64]  # (N,) line of each detection, from 1
    exact: NDArray[np.float64]  # (N, 2) x, y as the file has them
    # (line, slide) of a file that names slides itself: where each appears first
    slides: tuple[tuple[int, str], ...] = ()

    @property
    def n_rounded(self) -> int:
        """How many positions are not whole pixels."""
        return int(np.count_nonzero((self.exact != np.rint(self.exact)).any(axis=1)))

    def on_slide(self, size: tuple[float, float] | None) -> Detections:
        """Return the detections, if all of them lie on the slide.

        Parameters
        ----------
        size : (width, height), level-0 px, or None where it is not known

        Returns
        -------
        detections : Detections
            Those that rounding moved over the right or lower edge are on the last pixel.

        Raises
        ------
        EvaluationError
            Naming file and line of the first that does not.
        """
        found = self.detections
        if size is not None:
            last = np.ceil(np.array(size)).astype(np.int64) - 1
            inside = self.exact < np.array(size)  # where only rounding could move them off it
            x, y = (
                np.where(inside[:, axis], np.minimum(values, last[axis]), values)
                for axis, values in ((0, found.x), (1, found.y))
            )
            found = Detections(x, y, found.scores)
        outside = find_outside(found, size)
        if outside.size:
            i = int(outside[0])
            raise EvaluationError(
                f"{self.path}, line {self.lines[i]}: {describe_outside(found, i, size)}"
            )
        return found


def find_outside(detections: Detections, size: tuple[float, float] | None) -> NDArray[np.int64]:
    """List the detections that lie outside the slide; without a size, those left of or above it."""
    x, y = detections.x, detections.y
    outside = (x < 0) | (y < 0)
    if size is not None:
        outside |= (x >= size[0]) | (y >= size[1])
    return np.flatnonzero(outside)


def describe_outside(detections: Detections, i: int, size: tuple[float, float] | None) -> str:
    """Explain what is wrong with a detection that lies outside, and what may be the cause."""
    point = f"the detection at x {detections.x[i]}, y {detections.y[i]} lies outside the slide"
    if size is None:
        return f"{point}: positions are level-0 pixels, from 0"
    return (
        f"{point}, which has {size[0]:g} x {size[1]:g} level-0 pixels; if they are level-0 pixels, "
        "the reference lies at another downsample than was taken (--mask-downsample)"
    )


def read_detection_file(path: Path) -> DetectionFile:
    """Read one slide's detections, in the order of the file, with their lines.

    A first row whose first field is no number is a header and gives the order of the columns;
    without one it is ``prob,x,y``. An empty file holds no detections.

    Raises
    ------
    EvaluationError
        Naming file and line of a field that is no probability or no position.
    """
    table = _read_table(path, _order_of_one_slide)
    first = np.unique(table.codes, return_index=True)[1]
    slides = sorted((int(table.lines[i]), table.names[table.codes[i]]) for i in first)
    return _select(path, table, slice(None), tuple((i, name) for i, name in slides if name))


def read_detection_table(path: Path) -> dict[str, DetectionFile]:
    """Read the detections of all slides from one file.

    The columns are ``slide_id,prob,x,y``, in this order or as a header gives it; more columns are
    allowed where there is a header. A row with a slide and nothing else names a slide without
    detections.

    Returns
    -------
    by_slide : slide as the file names it -> DetectionFile

    Raises
    ------
    EvaluationError
        Naming file and line, as `read_detection_file`; or if the file names no slides.
    """
    table = _read_table(path, _order_of_all_slides)
    order = np.argsort(table.codes, kind="stable")
    cuts = np.searchsorted(table.codes[order], np.arange(len(table.names) + 1))
    rows_by_name = {
        name: order[start:end]
        for name, start, end in zip(table.names, cuts[:-1], cuts[1:], strict=True)
    }
    if "" in rows_by_name:
        line = table.lines[rows_by_name[""][0]]
        raise EvaluationError(f"{path}, line {line}: the column '{SLIDE_COLUMN}' is empty")
    return {name: _select(path, table, rows) for name, rows in rows_by_name.items()}


@dataclass(frozen=True)
class _Table:
    """All rows of a file."""

    lines: NDArray[np.int64]  # (N,) from 1
    values: NDArray[np.float64]  # (N, 3) prob, x, y; NaN where a row only names its slide
    codes: NDArray[np.int32]  # (N,) index into the names
    names: list[str]  # in the order in which they first appear; empty: no name


def _select(
    path: Path,
    table: _Table,
    rows: slice | NDArray[np.int64],
    slides: tuple[tuple[int, str], ...] = (),
) -> DetectionFile:
    values, lines = table.values[rows], table.lines[rows]
    known = ~np.isnan(values[:, 0])
    values, lines = values[known], lines[known]
    exact = values[:, 1:]
    x, y = np.rint(exact).astype(np.int64).T
    return DetectionFile(path, Detections(x, y, values[:, 0].copy()), lines, exact, slides)


@dataclass(frozen=True)
class _Order:
    """Where a file has its columns."""

    n_columns: int
    is_header: bool
    slide: int | None  # None: the file names no slides
    values: tuple[int, int, int]  # prob, x, y


_FindOrder = Callable[[Path, int, list[str]], _Order]


def _read_table(path: Path, find_order: _FindOrder) -> _Table:
    try:
        return _read_plain(path, find_order)
    except NotPlainError:
        return _read_by_row(path, find_order)


def _read_plain(path: Path, find_order: _FindOrder) -> _Table:
    """Read a file of which every row is right."""

    def find_layout(fields: list[str]) -> Layout | None:
        try:
            order = find_order(path, 1, fields)
        except EvaluationError:
            return None
        if len(fields) != order.n_columns:
            return None
        return Layout(order.is_header, order.values, () if order.slide is None else (order.slide,))

    found = read_columns(path, find_layout)
    values = np.column_stack(found.numbers)
    is_named = bool(found.names)
    codes = found.codes[0] if is_named else np.zeros(len(values), np.int32)
    names = found.names[0] if is_named else [""]
    empty = np.isnan(values).all(axis=1)
    right = (values[:, 0] >= 0) & (values[:, 0] <= 1) & (abs(values[:, 1:]) <= FAR).all(axis=1)
    if not (right | (empty & is_named)).all() or (empty.any() and "" in names):
        raise NotPlainError
    lines = found.first_line + np.arange(len(values), dtype=np.int64)
    return _Table(lines, values, codes, names)


def _read_by_row(path: Path, find_order: _FindOrder) -> _Table:
    rows = list(_iterate_detections(path, find_order))
    code_by_name: dict[str, int] = {}
    codes = [code_by_name.setdefault(name, len(code_by_name)) for _, name, _ in rows]
    return _Table(
        np.array([line for line, _, _ in rows], np.int64),
        np.array([values for _, _, values in rows], np.float64).reshape(-1, 3),
        np.array(codes, np.int32),
        list(code_by_name),
    )


def _iterate_detections(
    path: Path, find_order: _FindOrder
) -> Iterator[tuple[int, str, tuple[float, float, float]]]:
    """Yield line, slide, and prob, x, y (NaN where a row only names its slide)."""
    order: _Order | None = None
    for line, fields in read_rows(path):
        where = f"{path}, line {line}"
        if order is None:
            order = find_order(path, line, fields)
            if order.is_header:
                continue
        if len(fields) != order.n_columns:
            names = ",".join((*([SLIDE_COLUMN] if order.slide is not None else []), *COLUMNS))
            raise EvaluationError(
                f"{where}: {len(fields)} fields, expected {order.n_columns} ({names}), "
                "separated by commas"
            )
        name = "" if order.slide is None else fields[order.slide]
        prob, x, y = (fields[i] for i in order.values)
        if name and not (prob or x or y):
            yield line, name, (np.nan, np.nan, np.nan)
            continue
        score = parse_score(where, "prob", prob)
        yield line, name, (score, parse_coordinate(where, "x", x), parse_coordinate(where, "y", y))


def _order_of_one_slide(path: Path, line: int, fields: list[str]) -> _Order:
    if parse_number(fields[0]) is not None:
        return _Order(3, is_header=False, slide=None, values=(0, 1, 2))
    values = _find_values(fields)
    if values is None:
        raise EvaluationError(
            f"{path}, line {line}: '{','.join(fields)}' is neither a detection nor a header; "
            f"write {','.join(COLUMNS)}, or rows of three numbers in this order"
        )
    return _Order(len(fields), True, find_column(fields, SLIDE_COLUMN), values)


def _order_of_all_slides(path: Path, line: int, fields: list[str]) -> _Order:
    columns = f"{SLIDE_COLUMN},{','.join(COLUMNS)}"
    values = _find_values(fields)
    if values is not None:
        slide = find_column(fields, SLIDE_COLUMN)
        if slide is None:
            raise EvaluationError(
                f"{path}, line {line}: no column '{SLIDE_COLUMN}' in the header "
                f"{','.join(fields)}; a file of all slides has {columns}, and files of one slide "
                "each are given by their folder"
            )
        return _Order(len(fields), is_header=True, slide=slide, values=values)
    numbers = [not text or parse_number(text) is not None for text in fields[1:]]
    if len(fields) == 4 and all(numbers):
        return _Order(4, is_header=False, slide=0, values=(1, 2, 3))
    raise EvaluationError(
        f"{path}, line {line}: '{','.join(fields)}' is neither a detection nor a header; "
        f"a file of all slides has {columns}, separated by commas"
    )


def _find_values(fields: list[str]) -> tuple[int, int, int] | None:
    """Find the columns of a header; None if the fields are no header."""
    found = [find_column(fields, name) for name in COLUMNS]
    prob, x, y = found
    return None if prob is None or x is None or y is None else (prob, x, y)


def write_detections(path: Path, detections: Detections) -> None:
    """Write one slide's detections; `read_detection_file` gives back the same numbers."""
    rows = zip(
        detections.scores.tolist(), detections.x.tolist(), detections.y.tolist(), strict=True
    )
    write_csv(path, COLUMNS, rows)
