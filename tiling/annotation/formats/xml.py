"""What the XML formats share: a safely parsed root, and numbers in attributes."""

from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
from defusedxml.common import DefusedXmlException

from tiling.annotation.formats.text import declared_encoding, decode_text
from tiling.errors import AnnotationError

XML_SUFFIXES = (".xml",)


def parse_xml(data: bytes) -> tuple[Element, tuple[str, ...]]:
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


def read_decimal(element: Element, key: str, name: str) -> float:
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


def rectangle(
    corner: tuple[float, float], opposite: tuple[float, float]
) -> list[tuple[float, float]]:
    """List the corners of an upright rectangle between two opposite ones."""
    (x0, y0), (x1, y1) = corner, opposite
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
