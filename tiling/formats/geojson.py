"""GeoJSON as QuPath exports it: a collection, a bare list, one feature or one geometry."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.errors import AnnotationError
from tiling.formats.drawing import Drawing, Role, check_vertices


def parse_geojson(content: Any, drawing: Drawing) -> None:
    """Put decoded GeoJSON into a drawing; what was not drawn by a person is ignored.

    Raises
    ------
    AnnotationError
        If it is no GeoJSON or holds a polygon that is none.
    """
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


def _role_of_feature(properties: Mapping[str, Any], drawing: Drawing) -> Role:
    name = _class_name(properties)
    if not name:
        return "tumour"
    role = drawing.role_of(name)
    if role is None:
        drawing.say("class taken for tumour, as its name says nothing else", name)
        return "tumour"
    return role


def _geojson_polygons(
    geometry: Any, name: str, drawing: Drawing
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
    rings = [check_vertices(name, _list(ring, name)) for ring in _list(coordinates, name)]
    if not rings:
        raise AnnotationError(f"polygon {name!r} has 0 vertices, an area needs 3; delete it")
    return rings


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise AnnotationError(f"polygon {name!r} needs a list of coordinates, got {value!r:.40}")
    return value
