"""Detections as CAMELYON16 exchanges them: one CSV per slide, ``prob,x,y`` in level-0 pixels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.contracts import Detections
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.tables import (
    parse_number,
    parse_pixel,
    parse_score,
    read_rows,
    write_rows,
)

COLUMNS = ("prob", "x", "y")
_NAMES = {
    "prob": ("prob", "probability", "score", "confidence", "p"),
    "x": ("x", "xcoordinate", "xcoord"),
    "y": ("y", "ycoordinate", "ycoord"),
}


@dataclass(frozen=True)
class DetectionFile:
    """Detections, and where they stand in their file."""

    path: Path
    detections: Detections
    lines: NDArray[np.int64]  # (N,) line of each detection, from 1

    def check_inside(self, size: tuple[float, float] | None) -> None:
        """See that every detection lies on the slide.

        Parameters
        ----------
        size : (width, height), level-0 px, or None where it is not known

        Raises
        ------
        EvaluationError
            Naming file and line of the first that does not.
        """
        outside = find_outside(self.detections, size)
        if outside.size:
            i = int(outside[0])
            raise EvaluationError(
                f"{self.path}, line {self.lines[i]}: {describe_outside(self.detections, i, size)}"
            )


def find_outside(detections: Detections, size: tuple[float, float] | None) -> NDArray[np.int64]:
    """List the detections that lie outside the slide; without a size, those left of or above it."""
    x, y = detections.x, detections.y
    outside = (x < 0) | (y < 0)
    if size is not None:
        outside |= (x >= size[0]) | (y >= size[1])
    return np.flatnonzero(outside)


def describe_outside(detections: Detections, i: int, size: tuple[float, float] | None) -> str:
    """Say what is wrong with a detection that lies outside, and what may be the cause."""
    point = f"the detection at x {detections.x[i]}, y {detections.y[i]} lies outside the slide"
    if size is None:
        return f"{point}: positions are level-0 pixels, from 0"
    return (
        f"{point}, which has {size[0]:g} x {size[1]:g} level-0 pixels; if they are level-0 pixels, "
        "the reference lies at another downsample than was taken (--mask-downsample)"
    )


def read_detection_file(path: Path) -> DetectionFile:
    """Read one slide's detections, in the order of the file, with their lines.

    A first row whose first field is no number is a header and says the order of the columns;
    without one it is ``prob,x,y``. An empty file holds no detections.

    Raises
    ------
    EvaluationError
        Naming file and line of a field that is no probability or no whole pixel.
    """
    order = (0, 1, 2)
    n_columns = 3
    lines: list[int] = []
    probs: list[float] = []
    xs: list[int] = []
    ys: list[int] = []
    for number, (line, fields) in enumerate(read_rows(path)):
        where = f"{path}, line {line}"
        if number == 0 and parse_number(fields[0]) is None:
            order, n_columns = _read_header(where, fields), len(fields)
            continue
        if len(fields) != n_columns:
            raise EvaluationError(
                f"{where}: {len(fields)} fields, expected {n_columns} ({','.join(COLUMNS)}), "
                "separated by commas"
            )
        prob, x, y = (fields[i] for i in order)
        probs.append(parse_score(where, "prob", prob))
        xs.append(parse_pixel(where, "x", x))
        ys.append(parse_pixel(where, "y", y))
        lines.append(line)
    detections = Detections(
        np.array(xs, dtype=np.int64), np.array(ys, dtype=np.int64), np.array(probs, np.float64)
    )
    return DetectionFile(path, detections, np.array(lines, dtype=np.int64))


def _read_header(where: str, fields: list[str]) -> tuple[int, int, int]:
    names = ["".join(c for c in field.lower() if c.isalnum()) for field in fields]
    found = [[i for i, name in enumerate(names) if name in _NAMES[column]] for column in COLUMNS]
    if any(len(places) != 1 for places in found):
        raise EvaluationError(
            f"{where}: '{','.join(fields)}' is neither a detection nor a header; "
            f"write {','.join(COLUMNS)}, or rows of three numbers in this order"
        )
    prob, x, y = (places[0] for places in found)
    return prob, x, y


def write_detections(path: Path, detections: Detections) -> None:
    """Write one slide's detections; `read_detection_file` gives back the same numbers."""
    rows = zip(
        detections.scores.tolist(), detections.x.tolist(), detections.y.tolist(), strict=True
    )
    write_rows(path, COLUMNS, rows)
