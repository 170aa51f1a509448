"""GeoJSON for QuPath: each scored patch as a tile, or regions above thresholds, or both.

QuPath (0.4 and later) expects a UUID as the id of an object, ``objectType`` for its kind, and
``measurements`` inside ``properties`` as a mapping of names to numbers. By default it crops slides
to ``openslide.bounds``: ``origin: bounds`` counts from there. Objects are clipped to the part that
QuPath shows.

References
----------
.. [1] QuPath, qupath-core, ``QuPathTypeAdapters.java``, reading of features.
"""

import gzip
import json
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tiling.files import write_aside
from tiling.wording import format_number, pluralize
from wsi_pipeline.config.settings import ExportConfig
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.exports.base import ExportImage, ExportJob, Scored

# Ids are derived from the content of an object, so that the same export gives the same bytes.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "wsi-pipeline/export/qupath")
_COLD, _HOT = (254, 224, 144), (165, 0, 38)  # of regions at threshold 0 and 1

Feature = dict[str, Any]
Box = tuple[int, int, int, int]


def write(job: ExportJob, folder: Path) -> tuple[list[Path], str]:
    """Write ``<slide_id>.geojson``, or ``.geojson.gz``."""
    slide, settings = job.slide, job.settings
    shown = _shown(slide, settings.origin)
    parts: list[Iterable[Feature]] = []
    counts: list[str] = []
    if settings.qupath in ("regions", "both"):
        regions = list(_regions(job, shown))
        parts.append(regions)
        counts.append(pluralize(len(regions), "region"))
    if settings.qupath in ("tiles", "both"):
        chosen = slide.scored & _touches(slide, shown)
        parts.append(_tiles(slide, chosen, shown))
        outside = int(slide.scored.sum() - chosen.sum())
        counts.append(
            f"{pluralize(int(chosen.sum()), 'tile')}{slide.describe_unscored()}"
            + (f", {outside} outside the scanned part skipped" if outside else "")
        )
    path = _write_file(slide, settings, folder, parts)
    return [path], ", ".join(counts) + _hint(slide, settings.origin)


def write_image(image: ExportImage, settings: ExportConfig, folder: Path) -> list[Path]:
    """Write ``<image_id>.geojson``, or ``.geojson.gz``: one tile, the image."""
    if settings.qupath != "tiles":
        raise ConfigError(
            f"export.qupath: single images have one score each and no regions, got "
            f"'{settings.qupath}'; use tiles"
        )
    tiles = _tiles(image, image.scored, _shown(image, "level0"))
    return [_write_file(image, settings, folder, [tiles])]


def _write_file(
    slide: Scored, settings: ExportConfig, folder: Path, parts: Iterable[Iterable[Feature]]
) -> Path:
    packed = settings.compression == "gzip"
    path = folder / f"{slide.slide_id}.geojson{'.gz' if packed else ''}"
    with write_aside(path) as scratch, scratch.open("wb") as file:
        if packed:  # no name and no date inside: equal content, equal bytes
            with gzip.GzipFile("", "wb", 6, file, mtime=0) as archive:
                _write_features(archive, parts)
        else:
            _write_features(file, parts)
    return path


def _shown(slide: Scored, origin: str) -> Box:
    """Find the part of the slide that QuPath shows: left, top, right, bottom, level-0 px."""
    (width, height), bounds = slide.size, slide.bounds
    if origin == "level0" or bounds is None:
        return 0, 0, width, height
    x, y, wide, high = bounds
    return x, y, x + wide, y + high


def _touches(slide: Scored, shown: Box) -> NDArray[np.bool_]:
    """(N,) patches that are shown at least in part."""
    (wide, high), (x, y) = slide.patch_l0, slide.scores.coords.T
    left, top, right, bottom = shown
    touches: NDArray[np.bool_] = (x < right) & (x + wide > left) & (y < bottom) & (y + high > top)
    return touches


def _hint(slide: Scored, origin: str) -> str:
    bounds = slide.bounds
    if origin == "bounds" or bounds is None or bounds[:2] == (0, 0):
        return ""
    return (
        f"; the scanned part begins at x {bounds[0]}, y {bounds[1]}: where QuPath crops to it, "
        "use --set origin=bounds"
    )


def _write_features(file: IO[bytes] | gzip.GzipFile, parts: Iterable[Iterable[Feature]]) -> None:
    """Write features one by one: a slide has hundreds of thousands."""
    file.write(b'{"type":"FeatureCollection","features":[')
    encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
    before = b"\n"
    for feature in (feature for part in parts for feature in part):
        file.write(before + encode(feature).encode())
        before = b",\n"
    file.write(b"\n]}\n")


def _tiles(slide: Scored, chosen: NDArray[np.bool_], shown: Box) -> Iterator[Feature]:
    (wide, high), (x_first, y_first, x_last, y_last) = slide.patch_l0, shown
    coords = slide.scores.coords[chosen].tolist()
    measured = _measurements(slide, chosen)
    for (x, y), values in zip(coords, measured, strict=True):
        # A patch may extend beyond the edge of the picture; an object of QuPath may not.
        left, top = max(x, x_first) - x_first, max(y, y_first) - y_first
        right, bottom = min(x + wide, x_last) - x_first, min(y + high, y_last) - y_first
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        yield {
            "type": "Feature",
            "id": _make_id(slide, f"tile {x} {y}"),
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"objectType": "tile", "measurements": values},
        }


def _measurements(slide: Scored, chosen: NDArray[np.bool_]) -> list[dict[str, float]]:
    """List what is measured of each patch: its score, and the probabilities of several classes."""
    found = [{"score": score} for score in slide.scores.scores[chosen].tolist()]
    if slide.scores.probabilities is not None:
        names, values = slide.classes("")
        for one, row in zip(found, values[chosen].tolist(), strict=True):
            one |= {f"prob_{name}": value for name, value in zip(names, row, strict=True)}
    return found


def _regions(job: ExportJob, shown: Box) -> Iterator[Feature]:
    from shapely import MultiPolygon, box, get_parts, transform
    from shapely.geometry import mapping

    from wsi_pipeline.exports.regions import find_regions

    frame, corner = box(*shown), shown[:2]
    for threshold in sorted(set(job.settings.thresholds)):
        name = f"{job.settings.class_name} >= {threshold:g}"
        for region in find_regions(job.heatmap, threshold):
            parts = [part for part in get_parts(region.outline & frame) if part.area]
            if not parts:
                continue
            visible = parts[0] if len(parts) == 1 else MultiPolygon(parts)
            moved = transform(visible, lambda points: points - corner)
            yield {
                "type": "Feature",
                "id": _make_id(job.slide, f"region {threshold} {region.outline.wkt}"),
                "geometry": mapping(moved),
                "properties": {
                    "objectType": "annotation",
                    "name": format_number(region.highest),
                    "classification": {"name": name, "color": _colour(threshold)},
                    "isLocked": True,
                    "measurements": {
                        "threshold": threshold,
                        "score max": region.highest,
                        "score mean": region.mean,
                    },
                },
            }


def _make_id(slide: Scored, what: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, f"{slide.slide_id} {slide.model} {what}"))


def _colour(share: float) -> list[int]:
    return [round(a + share * (b - a)) for a, b in zip(_COLD, _HOT, strict=True)]
