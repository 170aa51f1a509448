"""Aperio ImageScope's XML: layers of regions, whose vertices are level-0 pixels.

``Annotations / Annotation (a layer) / Regions / Region / Vertices / Vertex``. A region's `Type` is
0 for a polygon or freehand outline, 1 for a rectangle (its corners), 2 for an ellipse (two opposite
corners of its bounding box), 3 for an arrow, 4 for a ruler or an open line. ``NegativeROA="1"``
marks a region that is cut out of its layer. HALO's ``.annotations`` files follow the same layout,
with kinds in words and vertices named ``V``.

The class is that of the layer: its `Name`, unless it only numbers the layer (``Layer 1``), else an
attribute of the layer that is called a class. Free text (a layer's ``Description``, a region's
`Text`) is a class only where it is a name with a known meaning.

References
----------
.. [1] https://github.com/laclouis5/globox/issues/3: the kinds of regions and their vertices.
.. [2] https://github.com/DeepMicroscopy/MITOS_WSI_CCMCT/issues/2: a file that ImageScope wrote.
"""

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import shapely

from tiling.annotation.formats.base import AnnotationFormat
from tiling.annotation.formats.drawing import Drawing, Meaning, meaning_of_name
from tiling.annotation.formats.xml import XML_SUFFIXES, parse_xml, read_outline

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element  # what defusedxml's parser returns

KINDS = {
    "0": "polygon", "1": "rectangle", "2": "ellipse", "3": "arrow", "4": "ruler",
    "polygon": "polygon", "rectangle": "rectangle", "ellipse": "ellipse",
}  # fmt: skip
AREAS = ("polygon", "rectangle", "ellipse")
NUMBERED = re.compile(r"(layer|annotation|region)\s*\d*", re.IGNORECASE)
CLASS_ATTRIBUTES = ("class", "classification", "category", "label", "type")
ELLIPSE_VERTICES = 90  # the polygon has 0.9992 of the ellipse's area

Point = tuple[float, float]
Region = tuple[str, Meaning, Any]  # name, meaning, shapely area


def parse_imagescope_xml(root: "Element", drawing: Drawing) -> None:
    """Put a file's regions into a drawing; negative ones are cut out of their layer.

    A layer of negative regions only is cut out of everything.

    Raises
    ------
    AnnotationError
        If a vertex is not a position.
    """
    drawing.class_word = "layer"
    for number, layer in enumerate(root.iter("Annotation"), start=1):
        outlines = list(_read_regions(layer, f"layer {layer.get('Id') or number}", drawing))
        holes = [region for is_hole, region in outlines if is_hole]
        regions = [region for is_hole, region in outlines if not is_hole]
        if not regions:
            for name, _, area in holes:
                drawing.add_area(name, "exclusion", area)
            continue
        cut = shapely.union_all([area for _, _, area in holes])
        shapely.prepare(cut)
        for name, meaning, area in regions:
            rest = shapely.difference(area, cut) if shapely.intersects(cut, area) else area
            if rest.is_empty:
                drawing.note("skipped, as negative regions cover them", name)
            else:
                drawing.add_area(name, meaning, rest)


IMAGESCOPE_XML = AnnotationFormat(
    title="ImageScope XML",
    suffixes=XML_SUFFIXES,
    hallmark="a root <Annotations>",
    decode=parse_xml,
    accepts=lambda root: root.tag == "Annotations",
    parse=parse_imagescope_xml,
)


def _read_regions(
    layer: "Element", layer_name: str, drawing: Drawing
) -> Iterator[tuple[bool, Region]]:
    """List the regions of a layer that are of use, and whether each is a hole."""
    for number, region in enumerate(layer.iter("Region"), start=1):
        name = f"{layer_name}, region {region.get('Id') or number}"
        is_hole = region.get("NegativeROA", "0").casefold() in ("1", "true")
        # A hole's text describes what was cut out; the hole belongs to the layer.
        class_name = _class_name(layer, "" if is_hole else region.get("Text") or "", drawing)
        meaning = drawing.classify(class_name)
        number_of_kind = region.get("Type", "0").strip().casefold()
        kind = KINDS.get(number_of_kind, f"region of type {number_of_kind}")
        if kind not in AREAS:
            drawing.note(f"ignored, as a {kind} has no area", name)
        elif drawing.is_wanted(meaning, class_name):
            area = drawing.build_area(name, [_vertices(region, name, kind)])
            if area is not None:
                yield is_hole, (name, meaning, area)


def _class_name(layer: "Element", text: str, drawing: Drawing) -> str:
    """Name of a region's class; empty if it has none."""
    layer_name = (layer.get("Name") or "").strip()
    named = [] if NUMBERED.fullmatch(layer_name) else [layer_name]
    free = [text]
    for attribute in layer.findall("Attributes/Attribute"):
        is_class = (attribute.get("Name") or "").strip().casefold() in CLASS_ATTRIBUTES
        (named if is_class else free).append(attribute.get("Value") or "")
    known = [name for name in (*named, *free) if _is_known(name, drawing)]
    return next(iter((*known, *(name for name in named if name.strip()))), "")


def _is_known(name: str, drawing: Drawing) -> bool:
    asked = {other.strip().casefold() for other in drawing.exclude}
    meaning = meaning_of_name(name)
    return name.strip().casefold() in asked or meaning not in ("unknown", "unclassified")


def _vertices(region: "Element", name: str, kind: str) -> list[Point]:
    vertices = (vertex for vertex in region.iter() if vertex.tag in ("Vertex", "V"))
    points = read_outline(vertices, name, kind)
    if kind == "ellipse" and 2 <= len(points) <= 4:  # corners, or ends of the axes
        return _ellipse(points)
    return points


def _ellipse(points: list[Point]) -> list[Point]:
    """Approximate the upright ellipse that fills the bounding box of some points."""
    xs, ys = zip(*points, strict=True)
    x, y = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    a, b = (max(xs) - min(xs)) / 2, (max(ys) - min(ys)) / 2
    angles = [2 * math.pi * i / ELLIPSE_VERTICES for i in range(ELLIPSE_VERTICES)]
    return [(x + a * math.cos(angle), y + b * math.sin(angle)) for angle in angles]
