"""What the XML formats share: a safely parsed root, numbers in attributes, outlines."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import defusedxml.ElementTree
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError

from tiling.annotation.formats.text import declared_encoding, decode_text
from tiling.errors import AnnotationError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element  # what defusedxml's parser returns

XML_SUFFIXES = (".xml",)


def parse_xml(data: bytes) -> tuple["Element", tuple[str, ...]]:
    """Parse XML of any encoding.

    Returns
    -------
    root : Element
    notes : sentences
        Not empty where the encoding is a guess.

    Raises
    ------
    AnnotationError
        If it is not well-formed, or declares entities.
    """
    text, notes = decode_text(data, declared=declared_encoding(data))
    try:
        root: Element = defusedxml.ElementTree.fromstring(text.lstrip())
    except DefusedXmlException as error:
        raise AnnotationError(
            "declares XML entities, which no annotation needs and which can fill the memory "
            f"({type(error).__name__}); it is not read: export it again from ASAP or ImageScope"
        ) from error
    except (ParseError, ValueError, LookupError) as error:
        raise AnnotationError(
            f"is not well-formed XML ({error}); it is damaged or cut short: export it again"
        ) from error
    return root, notes


def read_decimal(element: "Element", key: str, name: str) -> float:
    """Read a number from an attribute, with a decimal point or comma.

    Raises
    ------
    AnnotationError
        If the attribute is missing or is not a number; `name` is that of the polygon.
    """
    text = element.get(key)
    if text is None:
        raise AnnotationError(
            f"polygon {name!r} has a {element.tag} without {key}; export it again"
        )
    try:
        # ASAP and ImageScope write the decimal sign of their computer's locale.
        return float(text.replace(",", "."))
    except ValueError as error:
        raise AnnotationError(
            f"polygon {name!r} has a {element.tag} with {key}={text!r}, which is not a number; "
            "export it again"
        ) from error


def read_outline(vertices: Iterable["Element"], name: str, kind: str) -> list[tuple[float, float]]:
    """Read the corners of an outline from the attributes X and Y of its vertices.

    A rectangle may be given by two opposite corners: the result has all four.

    Raises
    ------
    AnnotationError
        If a vertex is not a position; `name` is that of the polygon.
    """
    points = [(read_decimal(v, "X", name), read_decimal(v, "Y", name)) for v in vertices]
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    return points
