"""What every annotation format shares: polygons with a role, checked vertices, names and notes."""

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tiling.errors import AnnotationError
from tiling.polygons import mend_polygon

Role = Literal["tumour", "exclusion", "ignored"]

# fmt: off
TUMOUR_NAMES = frozenset({
    "tumor", "tumour", "tumors", "tumours", "_0", "_1", "metastasis", "metastases", "cancer",
    "carcinoma", "malignant", "lesion", "lesions", "positive",
})
EXCLUSION_NAMES = frozenset({
    "exclusion", "exclusions", "exclude", "excluded", "_2", "hole", "holes",
})
IGNORED_NAMES = frozenset({
    "none", "stroma", "necrosis", "negative", "background", "glass", "tissue", "fat", "other",
    "region", "roi", "artefact", "artefacts", "artifact", "artifacts", "lymphocyte", "lymphocytes",
    "lymph node", "immune cells",
})
# fmt: on
# "normal tissue", "benign gland", "non-tumour", "no tumor"; but not "non-small cell carcinoma"
IGNORED_PATTERN = re.compile(
    r"normal|benign|healthy|ignore|(no|non|not)[ _-]*(tumou?r|cancer|malign|metast|neoplas|lesion)"
)

MAX_COORDINATE_L0 = 1e8  # no slide is wider; beyond it float64 areas lose whole pixels
NAMED_IN_NOTES = 5  # notes name this many polygons, then count


@dataclass
class Drawing:
    """What a file holds, while it is read.

    Attributes
    ----------
    offset_l0 : (x, y), level-0 px
        Where the file's (0, 0) lies on the slide.
    exclude : names
        Cut out of the tumour, besides those that always are.
    """

    offset_l0: tuple[float, float] = (0.0, 0.0)
    exclude: Collection[str] = ()
    tumours: list[Any] = field(default_factory=list)  # shapely MultiPolygons
    exclusions: list[Any] = field(default_factory=list)
    names_by_event: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, role: Role, rings: Sequence[NDArray[np.float64]]) -> None:
        """Take one polygon: its shell, then its holes."""
        shell, *holes = (ring + np.array(self.offset_l0) for ring in rings)
        area, mended = mend_polygon(shell, holes)
        if area.is_empty:
            self.say("left out, as they enclose no area", name)
            return
        if mended:
            self.say("mended, as their outlines cross or touch themselves", name)
        (self.tumours if role == "tumour" else self.exclusions).append(area)

    def role_of(self, name: str) -> Role | None:
        """Tell what a name stands for here; what is asked to be cut out comes first."""
        asked = {_plain(other) for other in self.exclude}
        return "exclusion" if _plain(name) in asked else role_of_name(name)

    def say(self, event: str, name: str) -> None:
        """Remember what happened to which polygon or group."""
        self.names_by_event.setdefault(event, []).append(name)

    def notes(self) -> list[str]:
        """Say it all, one sentence for each kind of event."""
        return [f"{event}: {shorten_names(names)}" for event, names in self.names_by_event.items()]


def shorten_names(names: Sequence[str]) -> str:
    """List a few names and count the rest.

    Examples
    --------
    >>> shorten_names(["a", "b", "a"])
    'a (2 times), b'
    """
    counts = Counter(names)
    shown = [name if n == 1 else f"{name} ({n} times)" for name, n in counts.items()]
    more = f" and {len(shown) - NAMED_IN_NOTES} more" if len(shown) > NAMED_IN_NOTES else ""
    return ", ".join(shown[:NAMED_IN_NOTES]) + more


def check_vertices(name: str, points: Sequence[Any]) -> NDArray[np.float64]:
    """Turn a list of positions into (n >= 3, 2) float64, or say what is wrong with it."""
    try:
        vertices = np.array([(_number(p[0]), _number(p[1])) for p in points], dtype=np.float64)
    except (TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise AnnotationError(
            f"polygon {name!r} has a vertex that is not a pair of numbers ({error}); "
            "correct it or export the annotation again"
        ) from error
    if len(vertices) > 1 and np.array_equal(vertices[0], vertices[-1]):
        vertices = vertices[:-1]
    if len(vertices) < 3:
        raise AnnotationError(
            f"polygon {name!r} has {len(vertices)} vertices, an area needs 3; "
            "finish or delete it where it was drawn and export again"
        )
    return vertices


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    number = float(value)
    if not math.isfinite(number) or abs(number) > MAX_COORDINATE_L0:
        raise ValueError(f"{number} is no position on a slide")
    return number


def role_of_name(name: str) -> Role | None:
    """Tell what a group or class name stands for; None if it is not one we know."""
    plain = _plain(name)
    if plain in TUMOUR_NAMES:
        return "tumour"
    if plain in EXCLUSION_NAMES:
        return "exclusion"
    if not plain or plain.endswith("*") or plain in IGNORED_NAMES or IGNORED_PATTERN.match(plain):
        return "ignored"
    return None


def _plain(name: str) -> str:
    return name.strip().casefold()
