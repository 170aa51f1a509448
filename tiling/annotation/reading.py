"""What a person drew on a slide: ASAP and ImageScope XML, QuPath GeoJSON and CAMELYON JSON.

Every format becomes one `Annotation`: the tumour, with exclusions and holes cut out, and its
lesions. Coordinates are (x, y) in level-0 pixels of OpenSlide's frame, whatever the file's.
Nothing is left out silently: `Annotation.notes` lists what was repaired, ignored or guessed.

A class (an ASAP group, an ImageScope layer) is read without regard to case:

- tumour: ``Tumor``, ``Metastases``, ``Cancer`` and the like, CAMELYON16's ``_0`` and ``_1``;
- cut out of the tumour: ``Exclusion`` and CAMELYON16's ``_2``;
- neither: ``Normal``, ``Stroma`` and the like, QuPath's ``Ignore*`` and every other class that ends
  in ``*``;
- any other name is taken as tumour, with a note: a tumour lost silently costs more than one that a
  reader of the note takes back;
- no class (``None`` is one): a region where anything else in the file has a class, else tumour,
  with a note in both cases; see `tiling.annotation.formats.drawing`.

An ASAP group inside another has the meaning of the nearest group around it that has one. The names
in CAMELYON JSON are ids without meaning: tumour is defined by its two lists.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from tiling.annotation.formats import FORMATS, SUFFIXES
from tiling.annotation.formats.drawing import Drawing, shorten_names
from tiling.annotation.formats.text import read_bytes
from tiling.contracts import Annotation, AnnotationOrigin, StrPath, Unclassified
from tiling.errors import AnnotationError
from tiling.urls import local_path


def read_annotation(
    path: StrPath,
    *,
    origin: AnnotationOrigin = "level0",
    bounds: tuple[int, int, int, int] | None = None,
    exclude: Collection[str] = (),
    unclassified: Unclassified = "auto",
) -> Annotation:
    """Read one slide's annotation.

    Parameters
    ----------
    path : Path
        ``.xml`` (ASAP or ImageScope), ``.geojson`` or ``.json`` (QuPath GeoJSON or CAMELYON JSON);
        recognised by their content; any of them may be gzipped (``.gz``).
    origin : ``level0`` or ``bounds``
        Where the file's (0, 0) is: at the slide's corner, or at that of its bounds, as in QuPath
        unless a slide is opened with ``--no-crop``. A slide without bounds begins at its corner
        for either.
    bounds : (x, y, width, height), level-0 px, or None
        Of the slide's scanned part, if the slide has them.
    exclude : names
        Classes that are cut out of the tumour, in addition to those that always are.
    unclassified : ``auto``, ``tumour`` or ``region``
        What annotations without a class are. ``auto``: regions where anything else in the file has
        a class, else tumour.

    Returns
    -------
    annotation : Annotation
        In level-0 pixels of the whole slide. Without any tumour if the file holds no polygon:
        that is legal.

    Raises
    ------
    AnnotationError
        If the file cannot be read, is in none of the formats, or a vertex is not a position.
    """
    path = local_path(path, "annotations")
    corner = (0, 0) if bounds is None else bounds[:2]
    drawing = Drawing(
        offset_l0=corner if origin == "bounds" else (0, 0),
        exclude=exclude,
        unclassified=unclassified,
    )
    try:
        _parse(path, read_bytes(path), drawing)
    except AnnotationError as error:
        raise AnnotationError(f"{path.name}: {error}") from error
    except RecursionError as error:
        raise AnnotationError(
            f"{path.name}: is nested too deeply for an annotation; export it again"
        ) from error
    return drawing.finish()


def check_annotation_fits(annotation: Annotation, slide_size: tuple[int, int]) -> tuple[str, ...]:
    """Check that what was drawn is on the slide.

    Parameters
    ----------
    annotation : Annotation
    slide_size : (width, height), level-0 px

    Returns
    -------
    notes : sentences
        Names the lesions that extend beyond the slide's edge; empty if none does.

    Raises
    ------
    AnnotationError
        If a lesion is entirely outside: the annotation was made for another slide or level.
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


def _parse(path: Path, data: bytes, drawing: Drawing) -> None:
    suffix = _format_suffix(path)
    formats = [known for known in FORMATS if suffix in known.suffixes]
    content, decode = None, None
    for known in formats:
        if known.decode is not decode:
            decode = known.decode
            content, notes = decode(data)
        if known.accepts(content):
            drawing.file_notes.extend(notes)
            known.parse(content, drawing)
            return
    raise AnnotationError(
        f"is neither {' nor '.join(f'{known.title} ({known.hallmark})' for known in formats)}: "
        f"found {_describe(content)}; export GeoJSON from QuPath"
    )


def _format_suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    if not suffixes or suffixes[-1] not in SUFFIXES:
        raise AnnotationError(
            f"has no suffix of an annotation ({', '.join(SUFFIXES)}); give "
            f"{', '.join(known.title for known in FORMATS[:-1])} or {FORMATS[-1].title}"
        )
    return suffixes[-1]


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        return f"keys {sorted(content)[:5]}"
    return f"a root <{content.tag}>" if hasattr(content, "tag") else f"{content!r:.40}"
