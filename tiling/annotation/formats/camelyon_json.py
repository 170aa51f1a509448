"""CAMELYON JSON: lists ``positive`` and ``negative`` of polygons with ``name`` and ``vertices``."""

from collections.abc import Mapping
from typing import Any

from tiling.annotation.formats.base import AnnotationFormat
from tiling.annotation.formats.drawing import Drawing, Meaning
from tiling.annotation.formats.text import JSON_SUFFIXES, parse_json
from tiling.errors import AnnotationError

MEANINGS: dict[str, Meaning] = {"positive": "tumour", "negative": "exclusion"}  # of the lists


def parse_camelyon_json(content: Mapping[str, Any], drawing: Drawing) -> None:
    """Take ``positive`` as tumour and cut ``negative`` out of it; names are ids only.

    Raises
    ------
    AnnotationError
        If a list is not one, an entry is not a polygon, or a vertex is not a position.
    """
    for key, meaning in MEANINGS.items():
        entries = content.get(key, [])
        if not isinstance(entries, list):
            raise AnnotationError(f"{key} must be a list of polygons, got {entries!r:.40}")
        for number, entry in enumerate(entries):
            name = f"{key} {number}"
            if not isinstance(entry, dict) or not isinstance(entry.get("vertices"), list):
                raise AnnotationError(f"{name} has no list of vertices; export it again")
            name = str(entry.get("name", name))
            drawing.add(name, meaning, [entry["vertices"]])


CAMELYON_JSON = AnnotationFormat(
    title="CAMELYON JSON",
    suffixes=JSON_SUFFIXES,
    hallmark="lists positive and negative",
    decode=parse_json,
    accepts=lambda found: isinstance(found, dict) and not MEANINGS.keys().isdisjoint(found),
    parse=parse_camelyon_json,
)
