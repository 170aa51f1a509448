"""What a person drew on a slide: ASAP XML, QuPath GeoJSON and CAMELYON JSON.

Every format becomes one `Annotation`: the tumour, with exclusions and holes cut out, and its
lesions. Coordinates are (x, y) in level-0 pixels of OpenSlide's frame. Nothing is left out in
silence: what was mended, ignored or guessed is said in `Annotation.notes`.

A name (an ASAP group, a QuPath class) is read without regard to case:

- tumour: ``Tumor``, ``Metastases``, ``Cancer`` and the like, CAMELYON16's ``_0`` and ``_1``;
- cut out of the tumour: ``Exclusion`` and CAMELYON16's ``_2``;
- neither: ``None``, ``Normal``, ``Stroma`` and the like, QuPath's ``Ignore*`` and every other class
  that ends in ``*``;
- any other name is taken for tumour, with a note: a tumour lost in silence costs more than one
  that a reader of the note takes back. So is a QuPath annotation without a class.

An ASAP group inside another takes the meaning of the nearest group around it that has one. The
names inside CAMELYON JSON are ids without meaning: its two lists say what is what.
"""

import gzip
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree.ElementTree import Element, ElementTree, ParseError, SubElement, indent

import defusedxml.ElementTree
import numpy as np
import shapely
from defusedxml.common import DefusedXmlException
from numpy.typing import ArrayLike, NDArray

from tiling.contracts import Annotation
from tiling.errors import AnnotationError
from tiling.files import write_aside
from tiling.polygons import assemble_annotation, mend_polygon

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

MAX_BYTES = 1 << 29  # unpacked; the largest CAMELYON16 annotation has 3 MB
MAX_COORDINATE_L0 = 1e8  # no slide is wider; beyond it float64 areas lose whole pixels
NAMED_IN_NOTES = 5  # notes name this many polygons, then count
GROUP_COLOURS = ("#ff0000", "#0000ff", "#00a000", "#ff8000", "#a000a0", "#00a0a0")


def read_annotation(path: Path) -> Annotation:
    """Read one slide's annotation.

    Parameters
    ----------
    path : Path
        ``.xml`` (ASAP), ``.geojson`` or ``.json`` (QuPath GeoJSON or CAMELYON JSON, told apart by
        their content); either may be gzipped (``.gz``).

    Returns
    -------
    annotation : Annotation
        Without any tumour if the file holds no polygon: that is legal.

    Raises
    ------
    AnnotationError
        If the file cannot be read, is none of the formats, or holds a polygon that is none.
    """
    path = Path(path)
    try:
        data = _read_bytes(path)
        drawing = _parse_xml(data) if _format_suffix(path) == ".xml" else _parse_json(data)
    except AnnotationError as error:
        raise AnnotationError(f"{path.name}: {error}") from error
    except RecursionError as error:
        raise AnnotationError(
            f"{path.name}: is nested too deeply for an annotation; export it again"
        ) from error
    return assemble_annotation(drawing.tumours, drawing.exclusions, notes=drawing.notes())


def check_annotation_fits(annotation: Annotation, slide_size: tuple[int, int]) -> tuple[str, ...]:
    """See that what was drawn lies on the slide.

    Parameters
    ----------
    annotation : Annotation
    slide_size : (width, height), level-0 px

    Returns
    -------
    notes : sentences
        Says which lesions stick out over the slide's edge; empty if none does.

    Raises
    ------
    AnnotationError
        If a lesion lies wholly outside: the annotation was made for another slide or level.
    """
    if not annotation.lesions:
        return ()
    width, height = slide_size
    slide = shapely.box(0, 0, width, height)
    shapely.prepare(slide)
    lesions = np.array(annotation.lesions, dtype=object)
    inside = shapely.intersects(slide, lesions) & ~shapely.touches(slide, lesions)
    if not inside.all():
        first = int(np.flatnonzero(~inside)[0])
        raise AnnotationError(
            f"{np.count_nonzero(~inside)} of {len(lesions)} lesions lie wholly outside the slide: "
            f"lesion {first + 1} spans {_span(lesions[first])}, the slide is {width} x {height} "
            "level-0 pixels; it was drawn on another slide, on another level, or in a cropped "
            "frame: export it again in level-0 pixels of the whole slide"
        )
    over = np.flatnonzero(~shapely.covers(slide, lesions))
    if not over.size:
        return ()
    names = _shorten([f"lesion {i + 1} ({_span(lesions[i])})" for i in over])
    return (f"outside the {width} x {height} slide in part: {names}",)


def write_asap_xml(
    path: Path, polygons: Sequence[tuple[str, str, ArrayLike]], groups: Iterable[str]
) -> None:
    """Write polygons as ASAP opens them, whole or not at all.

    Parameters
    ----------
    path : Path
        Ends in ``.xml``.
    polygons : sequence of (name, group, vertices)
        Vertices are (n >= 3, 2), (x, y) in level-0 px, not closed. Holes are polygons of a group
        named ``Exclusion``.
    groups : names
        Every group a polygon is in, perhaps more.

    Raises
    ------
    AnnotationError
        If a polygon is none or its group is not among `groups`.
    """
    colour_by_group = {
        group: GROUP_COLOURS[i % len(GROUP_COLOURS)] for i, group in enumerate(groups)
    }
    root = Element("ASAP_Annotations")
    drawn = SubElement(root, "Annotations")
    for name, group, vertices in polygons:
        if group not in colour_by_group:
            raise AnnotationError(
                f"{path.name}: polygon {name!r} is in group {group!r}, which is not among the "
                f"groups {sorted(colour_by_group)}"
            )
        _write_polygon(drawn, name, group, colour_by_group[group], vertices)
    declared = SubElement(root, "AnnotationGroups")
    for group, colour in colour_by_group.items():
        element = SubElement(declared, "Group", Name=group, PartOfGroup="None", Color=colour)
        SubElement(element, "Attributes")
    indent(root)
    with write_aside(path) as scratch:
        ElementTree(root).write(scratch, encoding="utf-8", xml_declaration=True)


def _write_polygon(
    parent: Element, name: str, group: str, colour: str, vertices: ArrayLike
) -> None:
    if not (name + group).isprintable():
        raise AnnotationError(f"XML cannot hold the control characters in {name!r} or {group!r}")
    points = _check_vertices(name, np.asarray(vertices, dtype=np.float64).tolist())
    attributes = {"Name": name, "Type": "Polygon", "PartOfGroup": group, "Color": colour}
    coordinates = SubElement(SubElement(parent, "Annotation", attributes), "Coordinates")
    for order, (x, y) in enumerate(points.tolist()):
        SubElement(coordinates, "Coordinate", Order=str(order), X=repr(x), Y=repr(y))


@dataclass
class _Drawing:
    """What a file holds, while it is read."""

    tumours: list[Any] = field(default_factory=list)  # shapely MultiPolygons
    exclusions: list[Any] = field(default_factory=list)
    names_by_event: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, role: Role, rings: Sequence[NDArray[np.float64]]) -> None:
        """Take one polygon: its shell, then its holes."""
        area, mended = mend_polygon(rings[0], rings[1:])
        if area.is_empty:
            self.say("left out, as they enclose no area", name)
            return
        if mended:
            self.say("mended, as their outlines cross or touch themselves", name)
        (self.tumours if role == "tumour" else self.exclusions).append(area)

    def say(self, event: str, name: str) -> None:
        self.names_by_event.setdefault(event, []).append(name)

    def notes(self) -> list[str]:
        return [f"{event}: {_shorten(names)}" for event, names in self.names_by_event.items()]


def _shorten(names: Sequence[str]) -> str:
    counts = Counter(names)
    shown = [name if n == 1 else f"{name} ({n} times)" for name, n in counts.items()]
    more = f" and {len(shown) - NAMED_IN_NOTES} more" if len(shown) > NAMED_IN_NOTES else ""
    return ", ".join(shown[:NAMED_IN_NOTES]) + more


def _span(lesion: Any) -> str:
    min_x, min_y, max_x, max_y = lesion.bounds
    return f"x {min_x:.0f} to {max_x:.0f}, y {min_y:.0f} to {max_y:.0f}"


# --- bytes -----------------------------------------------------------------------------------


def _format_suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    if not suffixes or suffixes[-1] not in (".xml", ".json", ".geojson"):
        raise AnnotationError(
            "is no annotation by its name; give ASAP XML (.xml), QuPath GeoJSON (.geojson) or "
            "CAMELYON JSON (.json)"
        )
    return suffixes[-1]


def _read_bytes(path: Path) -> bytes:
    opener = gzip.open if path.suffix.lower() == ".gz" else Path.open
    try:
        with opener(path, "rb") as file:
            data: bytes = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AnnotationError(f"cannot be read ({reason}); check the path and the file") from error
    if len(data) > MAX_BYTES:
        raise AnnotationError(
            f"holds more than {MAX_BYTES >> 20} MiB: no annotation of one slide; check the file"
        )
    if not data.strip():
        raise AnnotationError(
            "is empty (0 bytes of content); export it again, or leave the manifest's annotation "
            "column empty for a slide without one"
        )
    return data


# --- vertices --------------------------------------------------------------------------------


def _check_vertices(name: str, points: Sequence[Any]) -> NDArray[np.float64]:
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


# --- names -----------------------------------------------------------------------------------


def _role_of_name(name: str) -> Role | None:
    """Tell what a group or class name stands for; None if it is not one we know."""
    plain = name.strip().casefold()
    if plain in TUMOUR_NAMES:
        return "tumour"
    if plain in EXCLUSION_NAMES:
        return "exclusion"
    if not plain or plain.endswith("*") or plain in IGNORED_NAMES or IGNORED_PATTERN.match(plain):
        return "ignored"
    return None


# --- ASAP XML --------------------------------------------------------------------------------


def _parse_xml(data: bytes) -> _Drawing:
    root = _parse_xml_root(data)
    parent_by_group = {
        group.get("Name", ""): group.get("PartOfGroup", "None") for group in root.iter("Group")
    }
    drawing = _Drawing()
    for number, annotation in enumerate(root.iter("Annotation")):
        name = annotation.get("Name") or f"number {number + 1}"
        kind = annotation.get("Type", "Polygon")
        if kind.casefold() not in ("polygon", "spline", "rectangle"):
            drawing.say(f"ignored, as a {kind} has no area", name)
            continue
        group = annotation.get("PartOfGroup", "None")
        role = _role_of_group(group, parent_by_group, drawing)
        if role == "ignored":
            drawing.say("not tumour by their group", group)
        else:
            drawing.add(name, role, [_asap_vertices(annotation, name, kind.casefold())])
            if kind.casefold() == "spline":
                drawing.say("taken as the polygon through the points of a spline", name)
    return drawing


def _parse_xml_root(data: bytes) -> Element:
    try:
        root: Element = defusedxml.ElementTree.fromstring(data)
    except DefusedXmlException as error:
        raise AnnotationError(
            "declares XML entities, which no annotation needs and which can fill the memory "
            f"({type(error).__name__}); it is not read: export it again from ASAP"
        ) from error
    except (ParseError, ValueError, LookupError) as error:
        raise AnnotationError(
            f"is not well-formed XML ({error}); it is damaged or cut short: export it again"
        ) from error
    if root.tag != "ASAP_Annotations":
        raise AnnotationError(
            f"is XML of another kind: its root is <{root.tag}>, ASAP's is <ASAP_Annotations>; "
            "open it in QuPath or ASAP and export GeoJSON or ASAP XML"
        )
    return root


def _role_of_group(name: str, parent_by_group: Mapping[str, str], drawing: _Drawing) -> Role:
    """Walk from a group outwards to the first that has a meaning."""
    group, seen = name, set[str]()
    if _role_of_name(name) != "ignored" and name not in parent_by_group:
        drawing.say("used as a group but not declared as one", name)
    role = _role_of_name(group)
    while role is None and group in parent_by_group and group not in seen:
        seen.add(group)
        group = parent_by_group[group]
        if group.casefold() == "none":  # the root that all groups are part of
            break
        role = _role_of_name(group)
    if role is None:
        drawing.say("group taken for tumour, as its name says nothing else", name)
        return "tumour"
    return role


def _asap_vertices(annotation: Element, name: str, kind: str) -> NDArray[np.float64]:
    elements = list(annotation.iter("Coordinate"))
    if all(element.get("Order") is not None for element in elements):
        elements.sort(key=lambda element: _decimal(element, "Order", name))
    points = [(_decimal(element, "X", name), _decimal(element, "Y", name)) for element in elements]
    if kind == "rectangle" and len(points) == 2:  # two opposite corners
        (x0, y0), (x1, y1) = points
        points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    return _check_vertices(name, points)


def _decimal(element: Element, key: str, name: str) -> float:
    text = element.get(key)
    if text is None:
        raise AnnotationError(f"polygon {name!r} has a Coordinate without {key}; export it again")
    try:
        return float(
            text.replace(",", ".")
        )  # ASAP writes the decimal sign of its computer's locale
    except ValueError as error:
        raise AnnotationError(
            f"polygon {name!r} has a Coordinate with {key}={text!r}, which is no number; "
            "export it again"
        ) from error


# --- JSON ------------------------------------------------------------------------------------


def _parse_json(data: bytes) -> _Drawing:
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except ValueError as error:
        raise AnnotationError(
            f"is not well-formed JSON ({error}); it is damaged or cut short: export it again"
        ) from error
    if isinstance(content, dict) and ("positive" in content or "negative" in content):
        return _parse_camelyon(content)
    if isinstance(content, list) or (isinstance(content, dict) and "type" in content):
        return _parse_geojson(content)
    found = f"keys {sorted(content)[:5]}" if isinstance(content, dict) else f"{content!r:.40}"
    raise AnnotationError(
        "is JSON of another kind: neither GeoJSON (a type) nor CAMELYON JSON (lists positive and "
        f"negative), found {found}; export GeoJSON from QuPath"
    )


def _parse_camelyon(content: Mapping[str, Any]) -> _Drawing:
    drawing = _Drawing()
    roles: tuple[tuple[str, Role], ...] = (("positive", "tumour"), ("negative", "exclusion"))
    for key, role in roles:
        entries = content.get(key, [])
        if not isinstance(entries, list):
            raise AnnotationError(f"{key} must be a list of polygons, got {entries!r:.40}")
        for number, entry in enumerate(entries):
            name = f"{key} {number}"
            if not isinstance(entry, dict) or not isinstance(entry.get("vertices"), list):
                raise AnnotationError(f"{name} has no list of vertices; export it again")
            name = str(entry.get("name", name))
            drawing.add(name, role, [_check_vertices(name, entry["vertices"])])
    return drawing


def _parse_geojson(content: Any) -> _Drawing:
    drawing = _Drawing()
    for number, feature in enumerate(_features(content)):
        properties = feature.get("properties") or {}
        if not isinstance(properties, dict):
            raise AnnotationError(f"feature {number}: properties must be an object")
        name = str(properties.get("name") or f"feature {number}")
        kind = _object_kind(feature, properties)
        if kind != "annotation":
            drawing.say(f"ignored, as a {kind} was not drawn by a person", name)
            continue
        role = _role_of_feature(properties, drawing)
        if role == "ignored":
            drawing.say("not tumour by their class", _class_name(properties))
        else:
            for rings in _geojson_polygons(feature.get("geometry"), name, drawing):
                drawing.add(name, role, rings)
    return drawing


def _features(content: Any) -> Iterator[dict[str, Any]]:
    """List the features of a collection, a bare list, one feature, or one bare geometry."""
    if isinstance(content, dict) and content.get("type") == "FeatureCollection":
        content = content.get("features")
        if not isinstance(content, list):
            raise AnnotationError("a FeatureCollection must have a list of features")
    for number, item in enumerate(content if isinstance(content, list) else [content]):
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "Feature":
            yield item
        elif kind in ("Polygon", "MultiPolygon", "GeometryCollection"):
            yield {"geometry": item}
        elif kind == "FeatureCollection":
            yield from _features(item)
        else:
            raise AnnotationError(
                f"item {number} has type {kind!r}, GeoJSON's is Feature; export it again"
            )


def _object_kind(feature: Mapping[str, Any], properties: Mapping[str, Any]) -> str:
    kind = properties.get("objectType") or properties.get("object_type")
    legacy = re.fullmatch(r"Path(\w+)Object", str(feature.get("id", "")))  # QuPath up to 0.2
    if kind is None and legacy is not None:
        kind = legacy[1]
    return str(kind or "annotation").casefold()


def _class_name(properties: Mapping[str, Any]) -> str:
    """Name of a feature's class, ``Tumor`` of ``Tumor: Positive``; empty if it has none."""
    value = properties.get("classification")
    if isinstance(value, dict):
        value = value.get("name") or next(iter(value.get("names") or ()), None)
    return str(value or "").split(":")[0].strip()


def _role_of_feature(properties: Mapping[str, Any], drawing: _Drawing) -> Role:
    name = _class_name(properties)
    if not name:
        return "tumour"
    role = _role_of_name(name)
    if role is None:
        drawing.say("class taken for tumour, as its name says nothing else", name)
        return "tumour"
    return role


def _geojson_polygons(
    geometry: Any, name: str, drawing: _Drawing
) -> Iterator[list[NDArray[np.float64]]]:
    """List the polygons of a geometry, each as its rings: the shell, then the holes."""
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind == "Polygon":
        yield _rings(geometry.get("coordinates"), name)
    elif kind == "MultiPolygon":
        for polygon in _list(geometry.get("coordinates"), name):
            yield _rings(polygon, name)
    elif kind == "GeometryCollection":
        for part in _list(geometry.get("geometries"), name):
            yield from _geojson_polygons(part, name, drawing)
    else:
        drawing.say(f"ignored, as a {kind or 'missing geometry'} has no area", name)


def _rings(coordinates: Any, name: str) -> list[NDArray[np.float64]]:
    rings = [_check_vertices(name, _list(ring, name)) for ring in _list(coordinates, name)]
    if not rings:
        raise AnnotationError(f"polygon {name!r} has 0 vertices, an area needs 3; delete it")
    return rings


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise AnnotationError(f"polygon {name!r} needs a list of coordinates, got {value!r:.40}")
    return value
