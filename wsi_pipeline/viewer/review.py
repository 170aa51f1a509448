"""What a person thought of patches and regions: one GeoJSON file per slide, which QuPath opens.

A change is one operation on one mark, applied to the file as it is at that moment under a lock, and
the file is replaced in one step. So two windows, or two viewers on one run, do not undo each other.

References
----------
.. [1] QuPath, qupath-core, ``QuPathTypeAdapters.java``, reading of features.
"""

import fcntl
import math
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tiling.files import parse_json, read_bytes, write_json
from wsi_pipeline.cohort.reviews import TRUTHS, VERDICTS
from wsi_pipeline.errors import ViewError
from wsi_pipeline.layout import RunFolder

_COLOURS = {"right": (27, 132, 85), "wrong": (207, 34, 46), "unsure": (191, 135, 0)}
_LONGEST_NOTE = 2000  # characters
_MOST_POINTS = 2000
_MOST_MARKS = 100_000


class Reviews:
    """The reviews of a run, in ``RUN/review/``.

    Parameters
    ----------
    run : RunFolder
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._lock = threading.Lock()

    def read(self, slide_id: str) -> dict[str, Any]:
        """Read the review of a slide as a GeoJSON ``FeatureCollection``; empty where there is none.

        Raises
        ------
        ViewError
            If the file is damaged.
        """
        path = self._run.review(slide_id)
        if not path.is_file():
            return {"type": "FeatureCollection", "features": []}
        try:
            value = parse_json(read_bytes(path))
            if isinstance(value, list):  # as QuPath exports it without "as FeatureCollection"
                value = {"type": "FeatureCollection", "features": value}
            if not isinstance(value["features"], list):
                raise TypeError("its features are no list")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ViewError(
                f"review/{path.name}: not a GeoJSON FeatureCollection ({error}); correct it, or "
                "move it away, and open the page again"
            ) from error
        return dict(value)

    def change(self, slide_id: str, value: Any, size: tuple[int, int]) -> dict[str, Any]:
        """Add, replace or remove one mark, and return the review.

        Parameters
        ----------
        slide_id : str
        value : dict
            ``{"add": MARK}``, where a mark of the same ``id`` is replaced, or ``{"remove": ID}``.
        size : (width, height), level-0 px
            Of the slide: marks lie on it.

        Raises
        ------
        ViewError
            If it is no such change, or the file cannot be written.
        """
        if not isinstance(value, dict) or len(value) != 1:
            raise ViewError("a change is {'add': MARK} or {'remove': ID}")
        added = as_feature(value["add"], size) if "add" in value else None
        gone = added["id"] if added else _check_id(value.get("remove"))
        path = self._run.review(slide_id)
        try:
            with self._lock, _lock_folder(path.parent):
                review = self.read(slide_id)
                kept = [one for one in review["features"] if _id_of(one) != gone]
                if len(kept) >= _MOST_MARKS:
                    raise ViewError(f"{slide_id}: a slide can have at most {_MOST_MARKS} marks")
                features = kept if added is None else [*kept, added]
                write_json(path, {**review, "features": features})
        except OSError as error:
            raise ViewError(
                f"review/{path.name}: cannot be written ({error.strerror}); the mark is not kept"
            ) from error
        return {**review, "features": features}


@contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    """Let one viewer at a time write; where the file system has no locks, the last one wins."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def as_feature(mark: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Check a mark from the page, and write it as a GeoJSON feature as QuPath has them.

    Parameters
    ----------
    mark : dict
        ``points`` (a ring of (x, y), level-0 px), ``verdict``, and optionally ``id``, ``truth``,
        ``note``, ``model``, ``score``, ``row`` (of the patch).
    size : (width, height), level-0 px

    Raises
    ------
    ViewError
        Naming what is wrong.
    """
    if not isinstance(mark, dict):
        raise ViewError("a mark is an object with points and a verdict")
    verdict, truth, note = mark.get("verdict"), mark.get("truth", ""), mark.get("note", "")
    if verdict not in VERDICTS:
        raise ViewError(f"a verdict is one of {', '.join(VERDICTS)}, got {verdict!r}")
    if truth not in (*TRUTHS, ""):
        raise ViewError(f"truth is tumour, normal or empty, got {truth!r}")
    if not isinstance(note, str) or len(note) > _LONGEST_NOTE:
        raise ViewError(f"a note is text of at most {_LONGEST_NOTE} characters")
    facts = {
        "verdict": verdict,
        "truth": truth,
        "note": note,
        "model": _text(mark.get("model", "")),
        "score": _finite_or_none(mark.get("score")),
        "row": mark["row"] if isinstance(mark.get("row"), int) else None,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return {
        "type": "Feature",
        "id": _check_id(mark["id"]) if "id" in mark else str(uuid.uuid4()),
        "geometry": {"type": "Polygon", "coordinates": [_ring(mark.get("points"), size)]},
        "properties": {
            "objectType": "annotation",
            "name": note or verdict,
            "classification": {"name": verdict, "color": list(_COLOURS[verdict])},
            "metadata": {
                key: str(value) for key, value in facts.items() if value not in ("", None)
            },
        },
    }


def _ring(points: Any, size: tuple[int, int]) -> list[list[float]]:
    """Check a ring, clip it to the slide, and close it."""
    if not isinstance(points, list) or not 3 <= len(points) <= _MOST_POINTS:
        raise ViewError(f"a mark has 3 to {_MOST_POINTS} points")
    ring = []
    for point in points:
        if not isinstance(point, list) or len(point) != 2:
            raise ViewError("a point is [x, y] in level-0 px")
        x, y = (_finite_or_none(value) for value in point)
        if x is None or y is None:
            raise ViewError("a point is [x, y] in level-0 px")
        ring.append([min(max(x, 0.0), size[0]), min(max(y, 0.0), size[1])])
    if any(len({point[axis] for point in ring}) == 1 for axis in (0, 1)):
        raise ViewError("a mark must cover some of the slide; this one lies beside it")
    return ring if ring[0] == ring[-1] else [*ring, ring[0]]


def _finite_or_none(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or abs(value) > sys.float_info.max:  # JSON's whole numbers have no end
        return None
    return float(value) if math.isfinite(value) else None


def _text(value: Any) -> str:
    return value[:200] if isinstance(value, str) else ""


def _check_id(value: Any) -> str:
    try:
        return str(uuid.UUID(value))
    except (ValueError, TypeError, AttributeError) as error:
        raise ViewError(f"the id of a mark is a UUID, got {value!r}") from error


def _id_of(feature: Any) -> Any:
    return feature.get("id") if isinstance(feature, dict) else None
