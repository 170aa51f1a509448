"""What a person drew on a slide: ASAP XML, QuPath GeoJSON and CAMELYON JSON.

Every format becomes one `Annotation`: the tumour, with exclusions and holes cut out, and its
lesions. Coordinates are (x, y) in level-0 pixels of OpenSlide's frame, whatever the file's.
Nothing is left out in silence: what was mended, ignored or guessed is said in `Annotation.notes`.

A name (an ASAP group, a QuPath class) is read without regard to case:

- tumour: ``Tumor``, ``Metastases``, ``Cancer`` and the like, CAMELYON16's ``_0`` and ``_1``;
- cut out of the tumour: ``Exclusion`` and CAMELYON16's ``_2``;
- neither: ``None``, ``Normal``, ``Stroma`` and the like, QuPath's ``Ignore*`` and every other class
  that ends in ``*``;
- any other name is taken for tumour, with a note: a tumour lost in silence costs more than one
  that a reader of the note takes back. So is a QuPath annotation without a class.

An ASAP group inside another takes the meaning of the nearest group around it that has one. The
names inside CAMELYON JSON are ids without meaning: its two lists say what is what.
"""

import gzip
import json
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from tiling.contracts import Annotation, AnnotationOrigin
from tiling.errors import AnnotationError
from tiling.files import check_file
from tiling.formats.asap_xml import parse_asap_xml, write_asap_xml
from tiling.formats.camelyon_json import parse_camelyon_json
from tiling.formats.drawing import Drawing, shorten_names
from tiling.formats.geojson import parse_geojson
from tiling.polygons import assemble_annotation

__all__ = ["check_annotation_fits", "read_annotation", "write_asap_xml"]

MAX_BYTES = 1 << 29  # unpacked; the largest CAMELYON16 annotation has 3 MB


def read_annotation(
    path: Path,
    *,
    origin: AnnotationOrigin = "level0",
    bounds: tuple[int, int, int, int] | None = None,
    exclude: Collection[str] = (),
) -> Annotation:
    """Read one slide's annotation.

    Parameters
    ----------
    path : Path
        ``.xml`` (ASAP), ``.geojson`` or ``.json`` (QuPath GeoJSON or CAMELYON JSON, told apart by
        their content); either may be gzipped (``.gz``).
    origin : ``level0`` or ``bounds``
        Where the file's (0, 0) lies: at the slide's corner, or at that of its bounds, as QuPath
        has it unless a slide is opened with ``--no-crop``. A slide without bounds begins at its
        corner for either.
    bounds : (x, y, width, height), level-0 px, or None
        Of the slide's scanned part, if the slide says so.
    exclude : names
        Groups and classes that are cut out of the tumour, besides those that always are.

    Returns
    -------
    annotation : Annotation
        In level-0 pixels of the whole slide. Without any tumour if the file holds no polygon:
        that is legal.

    Raises
    ------
    AnnotationError
        If the file cannot be read, is none of the formats, or holds a polygon that is none.
    """
    path = Path(path)
    corner = (0, 0) if bounds is None else bounds[:2]
    drawing = Drawing(offset_l0=corner if origin == "bounds" else (0, 0), exclude=exclude)
    try:
        data = _read_bytes(path)
        if _format_suffix(path) == ".xml":
            parse_asap_xml(data, drawing)
        else:
            _parse_json(data, drawing)
    except AnnotationError as error:
        raise AnnotationError(f"{path.name}: {error}") from error
    except RecursionError as error:
        raise AnnotationError(
            f"{path.name}: is nested too deeply for an annotation; export it again"
        ) from error
    return assemble_annotation(drawing.tumours, drawing.exclusions, notes=drawing.notes())


def check_annotation_fits(annotation: Annotation, slide_size: tuple[int, int]) -> tuple[str, ...]:
    """See that what was drawn lies on the slide.

    Parameters
    ----------
    annotation : Annotation
    slide_size : (width, height), level-0 px

    Returns
    -------
    notes : sentences
        Says which lesions stick out over the slide's edge; empty if none does.

    Raises
    ------
    AnnotationError
        If a lesion lies wholly outside: the annotation was made for another slide or level.
    """
    if not annotation.lesions:
        return ()
    width, height = slide_size
    slide = shapely.box(0, 0, width, height)
    shapely.prepare(slide)
    lesions = np.array(annotation.lesions, dtype=object)
    inside = shapely.intersects(slide, lesions) & ~shapely.touches(slide, lesions)
    if not inside.all():
        first = int(np.flatnonzero(~inside)[0])
        raise AnnotationError(
            f"{np.count_nonzero(~inside)} of {len(lesions)} lesions lie wholly outside the slide: "
            f"lesion {first + 1} spans {_span(lesions[first])}, the slide is {width} x {height} "
            "level-0 pixels; it was drawn on another slide, on another level, or in another frame: "
            "export it again in level-0 pixels of the whole slide, or set tile.annotation_origin "
            "(bounds: counted from the corner of the scanned part, as QuPath does)"
        )
    over = np.flatnonzero(~shapely.covers(slide, lesions))
    if not over.size:
        return ()
    names = shorten_names([f"lesion {i + 1} ({_span(lesions[i])})" for i in over])
    return (f"outside the {width} x {height} slide in part: {names}",)


def _span(lesion: Any) -> str:
    min_x, min_y, max_x, max_y = lesion.bounds
    return f"x {min_x:.0f} to {max_x:.0f}, y {min_y:.0f} to {max_y:.0f}"


def _format_suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    if not suffixes or suffixes[-1] not in (".xml", ".json", ".geojson"):
        raise AnnotationError(
            "is no annotation by its name; give ASAP XML (.xml), QuPath GeoJSON (.geojson) or "
            "CAMELYON JSON (.json)"
        )
    return suffixes[-1]


def _read_bytes(path: Path) -> bytes:
    opener = gzip.open if path.suffix.lower() == ".gz" else Path.open
    try:
        check_file(path)
        with opener(path, "rb") as file:
            data: bytes = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AnnotationError(f"cannot be read ({reason}); check the path and the file") from error
    if len(data) > MAX_BYTES:
        raise AnnotationError(
            f"holds more than {MAX_BYTES >> 20} MiB: no annotation of one slide; check the file"
        )
    if not data.strip():
        raise AnnotationError(
            "is empty (0 bytes of content); export it again, or leave the manifest's annotation "
            "column empty for a slide without one"
        )
    return data


def _parse_json(data: bytes, drawing: Drawing) -> None:
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except ValueError as error:
        raise AnnotationError(
            f"is not well-formed JSON ({error}); it is damaged or cut short: export it again"
        ) from error
    if isinstance(content, dict) and ("positive" in content or "negative" in content):
        parse_camelyon_json(content, drawing)
    elif isinstance(content, list) or (isinstance(content, dict) and "type" in content):
        parse_geojson(content, drawing)
    else:
        found = f"keys {sorted(content)[:5]}" if isinstance(content, dict) else f"{content!r:.40}"
        raise AnnotationError(
            "is JSON of another kind: neither GeoJSON (a type) nor CAMELYON JSON (lists positive "
            f"and negative), found {found}; export GeoJSON from QuPath"
        )
