"""GeoJSON as QuPath exports it: a collection, a bare list, one feature or one geometry."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tiling.annotation.formats.base import AnnotationFormat
from tiling.annotation.formats.drawing import Drawing
from tiling.annotation.formats.text import JSON_SUFFIXES, parse_json
from tiling.errors import AnnotationError

# Where a class is named: by QuPath (an object with a name, or the name alone), by TIAToolbox's
# annotation store, and by scripts that write a flat table of properties.
CLASS_KEYS = ("classification", "type", "class", "label")
# Values of `type` that are the kind of an object, not its class.
NOT_CLASSES = frozenset(
    {
        "feature", "annotation", "detection", "cell", "tile", "polygon", "multipolygon",
        "rectangle", "ellipse", "freehand", "brush", "area", "roi",
    }
)  # fmt: skip


def parse_geojson(content: Any, drawing: Drawing) -> None:
    """Put decoded GeoJSON into a drawing; what was not drawn by a person is ignored.

    Raises
    ------
    AnnotationError
        If it is not GeoJSON or a vertex is not a position.
    """
    for number, feature in enumerate(list_features(content)):
        properties = feature.get("properties") or {}
        if not isinstance(properties, dict):
            raise AnnotationError(f"feature {number}: properties must be an object")
        name = str(properties.get("name") or f"feature {number}")
        class_name = find_class(properties)
        meaning = drawing.classify(class_name)  # detections, too, show that classes are in use
        kind = object_kind(feature, properties)
        if kind != "annotation":
            drawing.note(f"ignored, as a {kind} was not drawn by a person", name)
        elif drawing.is_wanted(meaning, class_name):
            for rings in list_polygons(feature.get("geometry"), name, drawing):
                drawing.add(name, meaning, rings)


GEOJSON = AnnotationFormat(
    title="GeoJSON",
    suffixes=JSON_SUFFIXES,
    hallmark="a type",
    decode=parse_json,
    accepts=lambda found: isinstance(found, list) or (isinstance(found, dict) and "type" in found),
    parse=parse_geojson,
)


def list_features(content: Any) -> Iterator[dict[str, Any]]:
    """List the features of a collection, a bare list, one feature, or one bare geometry.

    Raises
    ------
    AnnotationError
        If it is not GeoJSON.
    """
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
            yield from list_features(item)
        else:
            raise AnnotationError(
                f"item {number} has type {kind!r}, GeoJSON's is Feature; export it again"
            )


def object_kind(feature: Mapping[str, Any], properties: Mapping[str, Any]) -> str:
    """Kind of a QuPath object, in lower case: ``annotation`` is what a person drew."""
    kind = properties.get("objectType") or properties.get("object_type")
    legacy = re.fullmatch(r"Path(\w+)Object", str(feature.get("id", "")))  # QuPath up to 0.2
    if kind is None and legacy is not None:
        kind = legacy[1]
    return str(kind or "annotation").casefold()


def find_class(properties: Mapping[str, Any]) -> str:
    """Name of a feature's class, ``Tumor`` of ``Tumor: Positive``; empty if it has none."""
    for key in CLASS_KEYS:
        value = properties.get(key)
        if isinstance(value, dict):
            value = value.get("name") or next(iter(value.get("names") or ()), None)
        if isinstance(value, bool) or not isinstance(value, str | int):
            continue
        name = str(value).split(":")[0].strip()
        if name and name.casefold() not in NOT_CLASSES:
            return name
    return ""


def list_polygons(geometry: Any, name: str, drawing: Drawing) -> Iterator[list[list[Any]]]:
    """List the polygons of a geometry, each as its rings: the shell, then the holes.

    Raises
    ------
    AnnotationError
        If its coordinates are no lists.
    """
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind == "Polygon":
        yield _rings(geometry.get("coordinates"), name)
    elif kind == "MultiPolygon":
        for polygon in _list(geometry.get("coordinates"), name):
            yield _rings(polygon, name)
    elif kind == "GeometryCollection":
        for part in _list(geometry.get("geometries"), name):
            yield from list_polygons(part, name, drawing)
    else:
        drawing.note(f"ignored, as a {kind or 'missing geometry'} has no area", name)


def _rings(coordinates: Any, name: str) -> list[list[Any]]:
    return [_list(ring, name) for ring in _list(coordinates, name)]


def _list(value: Any, name: str) -> list[Any]:
    if value is None:  # how some writers store an empty geometry
        return []
    if not isinstance(value, list):
        raise AnnotationError(f"polygon {name!r} needs a list of coordinates, got {value!r:.40}")
    return value
