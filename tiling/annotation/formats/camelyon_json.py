"""CAMELYON JSON: lists ``positive`` and ``negative`` of polygons with ``name`` and ``vertices``."""

from collections.abc import Mapping
from typing import Any

from tiling.annotation.formats.drawing import Drawing, Meaning
from tiling.errors import AnnotationError


def parse_camelyon_json(content: Mapping[str, Any], drawing: Drawing) -> None:
    """Take ``positive`` as tumour and cut ``negative`` out of it; names are ids only.

    Raises
    ------
    AnnotationError
        If a list is not one, an entry is not a polygon, or a vertex is not a position.
    """
    lists: tuple[tuple[str, Meaning], ...] = (("positive", "tumour"), ("negative", "exclusion"))
    for key, meaning in lists:
        entries = content.get(key, [])
        if not isinstance(entries, list):
            raise AnnotationError(f"{key} must be a list of polygons, got {entries!r:.40}")
        for number, entry in enumerate(entries):
            name = f"{key} {number}"
            if not isinstance(entry, dict) or not isinstance(entry.get("vertices"), list):
                raise AnnotationError(f"{name} has no list of vertices; export it again")
            name = str(entry.get("name", name))
            drawing.add(name, meaning, [entry["vertices"]])
