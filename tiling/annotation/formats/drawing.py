"""What every annotation format shares: polygons with a meaning, checked vertices, notes.

One rule holds in all formats. An annotation has a meaning by its class (an ASAP group, a QuPath or
TIAToolbox class, an ImageScope layer). One without a class is a region, and not tumour, where
anything else in the file has a class: people outline the tissue or a region of interest and class
what lies in it. If nothing in the file has a class, everything is tumour. Either is a guess, and a
note reports it; the setting `unclassified` decides otherwise.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray

from tiling.contracts import Annotation, Unclassified
from tiling.errors import AnnotationError
from tiling.polygons import assemble_annotation, repair_polygon
from tiling.wording import name_some

# unknown: a class without a known meaning; unclassified: no class at all
Meaning = Literal["tumour", "exclusion", "ignored", "unknown", "unclassified"]
Vertices = NDArray[np.float64]

# fmt: off
TUMOUR_NAMES = frozenset({
    "tumor", "tumour", "tumors", "tumours", "_0", "_1", "metastasis", "metastases", "cancer",
    "carcinoma", "malignant", "lesion", "lesions", "positive",
})
EXCLUSION_NAMES = frozenset({
    "exclusion", "exclusions", "exclude", "excluded", "_2", "hole", "holes",
})
IGNORED_NAMES = frozenset({
    "stroma", "necrosis", "negative", "background", "glass", "tissue", "fat", "other",
    "region", "roi", "artefact", "artefacts", "artifact", "artifacts", "lymphocyte", "lymphocytes",
    "lymph node", "immune cells",
})
# fmt: on
# ASAP's root group, of which everything without a group is a part; other tools write it too.
NO_CLASS = frozenset({"", "none", "null", "unclassified"})
# "normal tissue", "benign gland", "non-tumour", "no tumor"; but not "non-small cell carcinoma"
IGNORED_PATTERN = re.compile(
    r"normal|benign|healthy|ignore|(no|non|not)[ _-]*(tumou?r|cancer|malign|metast|neoplas|lesion)"
)

MAX_COORDINATE_L0 = 1e8  # no slide is wider; beyond it float64 areas lose whole pixels
NAMED_IN_NOTES = 5  # notes name this many polygons, then count

NO_AREA = "skipped, as they enclose no area"
TAKEN_AS_TUMOUR = (
    "annotations without class taken as tumour, as nothing in the file has a class "
    "(unclassified=region leaves them out)"
)
TAKEN_AS_REGION = (
    "annotations without class taken as regions, not as tumour, as others in the file have a class "
    "(unclassified=tumour takes them as tumour)"
)


@dataclass
class Drawing:
    """What a file holds, while it is read.

    Attributes
    ----------
    offset_l0 : (x, y), level-0 px
        Where the file's (0, 0) is on the slide.
    exclude : names
        Classes that are cut out of the tumour, in addition to those that always are.
    unclassified : ``auto``, ``tumour`` or ``region``
        What annotations without a class are.
    class_word, subject : str
        What the format calls a class, and what is drawn: for the notes.
    """

    offset_l0: tuple[float, float] = (0.0, 0.0)
    exclude: Collection[str] = ()
    unclassified: Unclassified = "auto"
    class_word: str = "class"
    subject: str = "tumour"
    has_classes: bool = False  # whether anything in the file has one
    file_notes: list[str] = field(default_factory=list)
    _areas: dict[Meaning, list[tuple[str, Any]]] = field(default_factory=dict)
    _names_by_event: dict[str, list[str]] = field(default_factory=dict)

    def classify(self, class_name: str) -> Meaning:
        """Look up what a class means here; `exclude` comes first."""
        plain = _plain(class_name)
        meaning: Meaning
        if plain and plain in {_plain(other) for other in self.exclude}:
            meaning = "exclusion"
        else:
            meaning = meaning_of_name(class_name)
        self.has_classes |= meaning != "unclassified"
        return meaning

    def is_wanted(self, meaning: Meaning, class_name: str) -> bool:
        """Decide whether the shapes of a class are of use, and note what their class did."""
        if meaning == "ignored":
            self.note(f"not {self.subject} by their {self.class_word}", class_name)
        elif meaning == "unknown":
            self.note(
                f"{self.class_word} taken as tumour, as its name is not a known one", class_name
            )
        return meaning != "ignored"

    def add(self, name: str, meaning: Meaning, rings: Sequence[Sequence[Any]]) -> None:
        """Take one polygon, its shell, then its holes; one that encloses no area is skipped.

        Raises
        ------
        AnnotationError
            If a vertex is not a position.
        """
        area = self.build_area(name, rings)
        if area is not None:
            self.add_area(name, meaning, area)

    def build_area(self, name: str, rings: Sequence[Sequence[Any]]) -> Any:
        """Turn rings into a shapely area in level-0 px; None, with a note, if there is none."""
        shell, *holes = [parse_vertices(name, ring) for ring in rings] or [np.empty((0, 2))]
        offset = np.array(self.offset_l0)
        kept = [hole + offset for hole in holes if _is_ring(hole)]
        area, repaired = shapely.MultiPolygon(), False
        if _is_ring(shell):
            area, repaired = repair_polygon(shell + offset, kept)
        if area.is_empty:
            self.note(NO_AREA, name)
            return None
        if len(kept) < len(holes):
            self.note("holes skipped, as they enclose no area", name)
        if repaired:
            self.note("repaired, as their outlines cross or touch themselves", name)
        return area

    def add_area(self, name: str, meaning: Meaning, area: Any) -> None:
        """Take an area in level-0 px."""
        self._areas.setdefault(meaning, []).append((name, area))

    def note(self, event: str, name: str) -> None:
        """Record what happened to which polygon or class."""
        self._names_by_event.setdefault(event, []).append(name)

    def finish(self) -> Annotation:
        """Decide what is without a class, and put the annotation together."""
        tumours = [*self._areas.get("tumour", []), *self._areas.get("unknown", [])]
        if self._are_unclassified_tumour():
            tumours += self._areas.get("unclassified", [])
        return assemble_annotation(
            [area for _, area in tumours],
            [area for _, area in self._areas.get("exclusion", [])],
            notes=self._notes(),
            drawn=[(name, area.bounds) for name, area in tumours],
        )

    def _are_unclassified_tumour(self) -> bool:
        names = [name for name, _ in self._areas.get("unclassified", [])]
        is_tumour = self.unclassified == "tumour" or (
            self.unclassified == "auto" and not self.has_classes
        )
        if self.unclassified == "auto":
            event = TAKEN_AS_TUMOUR if is_tumour else TAKEN_AS_REGION
        else:
            event = "" if is_tumour else "not tumour, as they have no class"
        if event and names:
            self._names_by_event[event] = names
        return is_tumour

    def _notes(self) -> list[str]:
        """One sentence about the file, or for each kind of event."""
        events = self._names_by_event.items()
        return [*self.file_notes, *(f"{event}: {shorten_names(names)}" for event, names in events)]


def shorten_names(names: Sequence[str]) -> str:
    """List a few names and count the rest.

    Examples
    --------
    >>> shorten_names(["a", "b", "a"])
    'a (2 times), b'
    """
    counts = Counter(names)
    shown = [name if n == 1 else f"{name} ({n} times)" for name, n in counts.items()]
    return name_some(shown, NAMED_IN_NOTES)


def parse_vertices(name: str, points: Sequence[Any]) -> Vertices:
    """Turn a list of positions into (n, 2) float64; a last one that repeats the first is dropped.

    Raises
    ------
    AnnotationError
        If a position is not a pair of finite numbers.
    """
    try:
        pairs = [(_number(p[0]), _number(p[1])) for p in points]
    except (TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise AnnotationError(
            f"polygon {name!r} has a vertex that is not a pair of numbers ({error}); "
            "correct it or export the annotation again"
        ) from error
    vertices = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    if len(vertices) > 1 and np.array_equal(vertices[0], vertices[-1]):
        vertices = vertices[:-1]
    return vertices


def check_vertices(name: str, points: Sequence[Any]) -> Vertices:
    """Turn a list of positions into (n >= 3, 2) float64.

    Raises
    ------
    AnnotationError
        If a position is not a pair of finite numbers, or there are fewer than 3.
    """
    vertices = parse_vertices(name, points)
    if len(vertices) < 3:
        raise AnnotationError(f"polygon {name!r} has {len(vertices)} vertices, an area needs 3")
    return vertices


def _is_ring(vertices: Vertices) -> bool:
    """Whether there are three different vertices, as an area needs."""
    for _ in range(2):
        vertices = vertices[(vertices != vertices[:1]).any(axis=1)]
    return bool(len(vertices))


def _number(value: Any) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    number = float(value)
    if not math.isfinite(number) or abs(number) > MAX_COORDINATE_L0:
        raise ValueError(f"{number} is not a position on a slide")
    return number


def meaning_of_name(name: str) -> Meaning:
    """Look up what a class of this name means, whatever the case of its letters."""
    plain = _plain(name)
    if plain in NO_CLASS:
        return "unclassified"
    if plain in TUMOUR_NAMES:
        return "tumour"
    if plain in EXCLUSION_NAMES:
        return "exclusion"
    if plain.endswith("*") or plain in IGNORED_NAMES or IGNORED_PATTERN.match(plain):
        return "ignored"
    return "unknown"


def _plain(name: str) -> str:
    return name.strip().casefold()
