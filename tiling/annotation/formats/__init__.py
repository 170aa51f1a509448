"""Annotation files: one module per format, each listed in `FORMATS`.

The first format of a file's suffix that accepts its content parses it; docs/labels.md lists them.
"""

from tiling.annotation.formats.asap_xml import ASAP_XML
from tiling.annotation.formats.base import AnnotationFormat
from tiling.annotation.formats.camelyon_json import CAMELYON_JSON
from tiling.annotation.formats.geojson import GEOJSON
from tiling.annotation.formats.imagescope_xml import IMAGESCOPE_XML

FORMATS: tuple[AnnotationFormat, ...] = (
    ASAP_XML,
    IMAGESCOPE_XML,
    CAMELYON_JSON,
    GEOJSON,
)

_PLAIN = tuple(dict.fromkeys(suffix for known in FORMATS for suffix in known.suffixes))
SUFFIXES = (*_PLAIN, *(f"{suffix}.gz" for suffix in _PLAIN))  # of annotation files
