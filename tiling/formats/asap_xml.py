"""ASAP's XML, as CAMELYON16 and CAMELYON17 use it: read and written."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, ElementTree, ParseError, SubElement, indent

import defusedxml.ElementTree
import numpy as np
from defusedxml.common import DefusedXmlException
from numpy.typing import ArrayLike, NDArray

from tiling.errors import AnnotationError
from tiling.files import write_aside
from tiling.formats.drawing import Drawing, Role, check_vertices

GROUP_COLOURS = ("#ff0000", "#0000ff", "#00a000", "#ff8000", "#a000a0", "#00a0a0")


def parse_asap_xml(data: bytes, drawing: Drawing) -> None:
    """Put a file's polygons into a drawing; groups are resolved, splines become polygons.

    Raises
    ------
    AnnotationError
        If it is no ASAP XML, declares entities, or holds a polygon that is none.
    """
    root = _root_of(data)
    parent_by_group = {
        group.get("Name", ""): group.get("PartOfGroup", "None") for group in root.iter("Group")
    }
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


def _root_of(data: bytes) -> Element:
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


def _role_of_group(name: str, parent_by_group: Mapping[str, str], drawing: Drawing) -> Role:
    """Walk from a group outwards to the first that has a meaning."""
    group, seen = name, set[str]()
    if drawing.role_of(name) != "ignored" and name not in parent_by_group:
        drawing.say("used as a group but not declared as one", name)
    role = drawing.role_of(group)
    while role is None and group in parent_by_group and group not in seen:
        seen.add(group)
        group = parent_by_group[group]
        if group.casefold() == "none":  # the root that all groups are part of
            break
        role = drawing.role_of(group)
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
    return check_vertices(name, points)


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
    points = check_vertices(name, np.asarray(vertices, dtype=np.float64).tolist())
    attributes = {"Name": name, "Type": "Polygon", "PartOfGroup": group, "Color": colour}
    coordinates = SubElement(SubElement(parent, "Annotation", attributes), "Coordinates")
    for order, (x, y) in enumerate(points.tolist()):
        SubElement(coordinates, "Coordinate", Order=str(order), X=repr(x), Y=repr(y))
