"""ASAP's XML, as CAMELYON16 and CAMELYON17 use it: read and written."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from xml.etree.ElementTree import (  # a type and the writer; defusedxml parses
    Element,
    ElementTree,
    SubElement,
    indent,
)

import numpy as np
from numpy.typing import ArrayLike

from tiling.annotation.formats.base import AnnotationFormat
from tiling.annotation.formats.drawing import Drawing, Meaning, check_vertices, meaning_of_name
from tiling.annotation.formats.xml import XML_SUFFIXES, parse_xml, read_decimal, read_outline
from tiling.errors import AnnotationError
from tiling.files import write_aside

GROUP_COLOURS = ("#ff0000", "#0000ff", "#00a000", "#ff8000", "#a000a0", "#00a0a0")


def parse_asap_xml(root: Element, drawing: Drawing) -> None:
    """Put a file's polygons into a drawing; groups are resolved, splines become polygons.

    Raises
    ------
    AnnotationError
        If a vertex is not a position.
    """
    drawing.class_word = "group"
    parent_by_group = {
        group.get("Name", ""): group.get("PartOfGroup", "None") for group in root.iter("Group")
    }
    for number, annotation in enumerate(root.iter("Annotation")):
        name = annotation.get("Name") or f"number {number + 1}"
        group = annotation.get("PartOfGroup", "None")
        meaning = _meaning_of_group(group, parent_by_group, drawing)
        kind = annotation.get("Type", "Polygon")
        if kind.casefold() not in ("polygon", "spline", "rectangle"):
            drawing.note(f"ignored, as a {kind} has no area", name)
        elif drawing.is_wanted(meaning, group):
            drawing.add(name, meaning, [_vertices(annotation, name, kind.casefold())])
            if kind.casefold() == "spline":
                drawing.note("taken as the polygon through the points of a spline", name)


def _meaning_of_group(name: str, parent_by_group: Mapping[str, str], drawing: Drawing) -> Meaning:
    """Walk from a group outwards to the first that has a meaning."""
    meaning = drawing.classify(name)
    if meaning not in ("ignored", "unclassified") and name not in parent_by_group:
        drawing.note("used as a group but not declared as one", name)
    group, seen = name, {name}
    while meaning == "unknown" and (group := parent_by_group.get(group, "None")) not in seen:
        if meaning_of_name(group) == "unclassified":  # the root that all groups are part of
            break
        seen.add(group)
        meaning = drawing.classify(group)
    return meaning


def _vertices(annotation: Element, name: str, kind: str) -> list[tuple[float, float]]:
    elements = list(annotation.iter("Coordinate"))
    if all(element.get("Order") is not None for element in elements):
        elements.sort(key=lambda element: read_decimal(element, "Order", name))
    return read_outline(elements, name, kind)


ASAP_XML = AnnotationFormat(
    title="ASAP XML",
    suffixes=XML_SUFFIXES,
    hallmark="a root <ASAP_Annotations>",
    decode=parse_xml,
    accepts=lambda root: root.tag == "ASAP_Annotations",
    parse=parse_asap_xml,
)


def write_asap_xml(
    path: Path, polygons: Sequence[tuple[str, str, ArrayLike]], groups: Iterable[str]
) -> None:
    """Write polygons as ASAP opens them atomically.

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
