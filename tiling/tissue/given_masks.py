"""Tissue as a user drew it: a TIFF or PNG mask, or GeoJSON polygons, instead of detection.

In a picture what is not background is tissue (`tiling.readers.mask_picture`); it covers the whole
slide, in whatever steps. Polygons are in level-0 pixels. A picture of any size is held in bounded
memory: its file tiles or strips are decoded one by one and counted into pixels large enough.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from tiling.annotation.formats.drawing import Drawing, Meaning, meaning_of_name
from tiling.annotation.formats.geojson import parse_geojson
from tiling.annotation.formats.text import parse_json, read_bytes
from tiling.annotation.labels import label_tiles
from tiling.annotation.raster import draw_area
from tiling.contracts import Annotation, TileConfig, TileGeometry
from tiling.errors import AnnotationError, MaskError, TissueError
from tiling.polygons import polygons_of
from tiling.readers import mask_picture
from tiling.tissue.summed_mask import SummedMask, TissueMeter

SUFFIXES = (*mask_picture.SUFFIXES, ".geojson")
MASK_PX = 2**24  # held; a finer mask is counted into as many pixels
SAME_ASPECT = 0.01  # share by which the sides' ratio may differ, besides rounding to whole pixels
TILES_AT_ONCE = 2**16  # boxes intersected with polygons
NO_TISSUE = {"background", "glass", "artefact", "artefacts", "artifact", "artifacts", "none"}
DAMAGE = (OSError, ValueError, LookupError)  # what parsing damaged GeoJSON raises

Share = NDArray[np.bool_] | NDArray[np.float32]


@dataclass(frozen=True)
class UserMask:
    """A user's mask of one slide: either a picture or polygons."""

    share: Share | None  # (H, W) of each pixel that is tissue
    pixel_l0: tuple[float, float]  # (x, y) level-0 px; sides of a pixel of `share`
    polygons: Annotation | None
    slide_size: tuple[int, int]
    slide_share: float  # of the slide that is tissue

    def meter(self, geometry: TileGeometry) -> TissueMeter:
        """Prepare to measure the share of tiles that is tissue, by area.

        Exact for polygons, and for pictures to the fraction of a pixel of `share`.
        """
        if self.share is None:
            return partial(self._measure_polygons, geometry=geometry)
        summed = SummedMask(self.share, self.pixel_l0)
        return partial(summed.tile_fraction, tile_l0=(geometry.patch_l0, geometry.patch_l0_y))

    def _measure_polygons(
        self, coords: NDArray[np.int64], geometry: TileGeometry
    ) -> NDArray[np.float32]:
        whole = replace(  # the inner square is all of the tile
            geometry,
            patch_px=1,
            inner_px=1,
            scale=(float(geometry.patch_l0), float(geometry.patch_l0_y)),
        )
        parts = [np.empty(0, np.float32)]
        for first in range(0, len(coords), TILES_AT_ONCE):
            labels = label_tiles(
                coords[first : first + TILES_AT_ONCE],
                geometry=whole,
                annotation=self.polygons,
                slide_label=None,
                config=TileConfig(),
            )
            parts.append(labels.tumour)
        return np.concatenate(parts)

    def on_grid(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Draw the mask as (H, W) pixels that cover the slide; for pictures, not for measuring."""
        if self.share is not None:
            rows = _sample_steps(shape[0], self.slide_size[1], self.pixel_l0[1])
            columns = _sample_steps(shape[1], self.slide_size[0], self.pixel_l0[0])
            drawn: NDArray[np.bool_] = self.share[np.ix_(rows, columns)] >= 0.5
            return drawn
        assert self.polygons is not None
        pixel_l0 = (self.slide_size[0] / shape[1], self.slide_size[1] / shape[0])
        return draw_area(self.polygons.tumour, shape=shape, pixel_l0=pixel_l0)


def find_mask(folder: Path, slide_id: str) -> Path:
    """Find a slide's mask.

    Raises
    ------
    TissueError
        If there is none, or more than one.
    """
    found = [path for suffix in SUFFIXES if (path := folder / f"{slide_id}{suffix}").is_file()]
    if not found:
        raise TissueError(
            f"{slide_id}: no tissue mask in {folder.name} (looked for "
            f"{', '.join(slide_id + suffix for suffix in SUFFIXES)}); name the file as the slide, "
            "or leave out tile.tissue.mask"
        )
    if len(found) > 1:
        raise TissueError(
            f"{slide_id}: more than one tissue mask in {folder.name}: "
            f"{', '.join(path.name for path in found)}; keep one"
        )
    return found[0]


def read_tissue_mask(
    path: Path, *, slide_size: tuple[int, int], wanted_px: tuple[int, int]
) -> UserMask:
    """Read a user's mask of a slide.

    Parameters
    ----------
    path : Path
        ``.tif``, ``.tiff``, ``.png`` (not background is tissue) or ``.geojson`` (level-0 px).
    slide_size : (width, height), level-0 px
    wanted_px : (width, height)
        Of a TIFF pyramid the smallest level of at least this size is read.

    Returns
    -------
    mask : UserMask

    Raises
    ------
    TissueError
        If the file cannot be read, is of another shape than the slide, or holds no polygon on it.
    """
    with _naming_damage(path):
        if path.suffix.lower() == ".geojson":
            polygons = _read_polygons(path, slide_size)
            slide_share = float(polygons.tumour.area) / math.prod(slide_size)
            return UserMask(None, (1.0, 1.0), polygons, slide_size, slide_share)
        counter = _read_picture(path, slide_size, wanted_px)
    size, step = counter.size, counter.step
    pixel_l0 = (step * slide_size[0] / size[0], step * slide_size[1] / size[1])
    share = counter.n_px / math.prod(size)
    return UserMask(counter.finish(), pixel_l0, None, slide_size, share)


# --- pictures --------------------------------------------------------------------------------


class _Counter:
    """Counts what is not zero into square blocks of a picture's pixels."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size  # (width, height) of the picture
        self.n_px = 0  # that are tissue
        self.step = max(1, math.ceil(math.sqrt(math.prod(size) / MASK_PX)))
        shape = (math.ceil(size[1] / self.step), math.ceil(size[0] / self.step))
        self._counts: NDArray[Any] = np.zeros(shape, np.bool_ if self.step == 1 else np.float32)

    def add(self, x: int, y: int, tissue: NDArray[np.bool_]) -> None:
        """Take a rectangle of the picture; each pixel once."""
        height, width = tissue.shape
        n_px = int(np.count_nonzero(tissue))
        if not n_px:
            return
        self.n_px += n_px
        if self.step == 1:
            self._counts[y : y + height, x : x + width] = tissue
            return
        rows, columns = self._starts(y, height), self._starts(x, width)
        counts = np.add.reduceat(tissue, rows, axis=0, dtype=np.float32)
        counts = np.add.reduceat(counts, columns, axis=1)
        top, left = y // self.step, x // self.step
        self._counts[top : top + len(rows), left : left + len(columns)] += counts

    def finish(self) -> Share:
        """Return the share of what each block holds of the picture."""
        if self.step > 1:
            rows, columns = (
                np.minimum(self.step, side - self.step * np.arange(n, dtype=np.float32))
                for side, n in zip(self.size[::-1], self._counts.shape, strict=True)
            )
            self._counts /= rows[:, None] * columns
        return self._counts

    def _starts(self, first: int, length: int) -> NDArray[np.int64]:
        to_next = -first % self.step  # px to the next block's first
        later = np.arange(to_next if to_next else self.step, length, self.step)
        return np.concatenate([[0], later]).astype(np.int64)


def _read_picture(path: Path, slide_size: tuple[int, int], wanted_px: tuple[int, int]) -> _Counter:
    with mask_picture.open_mask(path) as picture:
        first = picture.levels[0]
        _check_aspect(first.size, slide_size)
        fine = [
            level
            for level in picture.levels
            if level.size[0] >= wanted_px[0] and level.size[1] >= wanted_px[1]
        ]
        level = fine[-1] if fine else first
        counter = _Counter(level.size)
        for block in picture.read(level):
            counter.add(block.x, block.y, block.drawn)
    return counter


def _check_aspect(size: tuple[int, int], slide_size: tuple[int, int]) -> None:
    if min(size) < 1:
        raise TissueError(f"is {size[0]} x {size[1]} px; export it again")
    ratio = (size[0] / size[1]) / (slide_size[0] / slide_size[1])
    if not abs(math.log(ratio)) <= SAME_ASPECT + 1 / min(size):
        raise TissueError(
            f"is {size[0]} x {size[1]} px, another shape than the slide of {slide_size[0]} x "
            f"{slide_size[1]} px: a mask covers the whole slide, not a crop of it, and is not "
            "turned; is it another slide's?"
        )


def _sample_steps(n_out: int, side_l0: int, pixel_l0: float) -> NDArray[np.int64]:
    centres: NDArray[np.int64] = ((np.arange(n_out) + 0.5) * side_l0 / n_out / pixel_l0).astype(
        np.int64
    )
    return centres


# --- polygons --------------------------------------------------------------------------------


class _TissueDrawing(Drawing):
    """Treats every polygon as tissue, except those of other classes."""

    def classify(self, class_name: str) -> Meaning:
        """Look up what a class means on a mask of tissue."""
        plain = class_name.strip().casefold()
        if plain in NO_TISSUE or meaning_of_name(plain) == "exclusion":
            return "exclusion"
        return "ignored" if plain.endswith("*") else "tumour"


def _read_polygons(path: Path, slide_size: tuple[int, int]) -> Annotation:
    drawing = _TissueDrawing(subject="tissue")
    try:
        content, notes = parse_json(read_bytes(path))
        parse_geojson(content, drawing)
    except RecursionError as error:
        raise TissueError("is nested too deeply; export it again") from error
    drawing.file_notes.extend(notes)
    found = drawing.finish()
    if found.tumour.is_empty:
        raise TissueError("holds no polygon of tissue; draw one, or leave the slide out")
    # What sticks out is no tissue: tiles that hang over the edge are white there.
    inside = polygons_of(shapely.intersection(found.tumour, shapely.box(0, 0, *slide_size)))
    if not inside:
        x0, y0, x1, y1 = found.tumour.bounds
        raise TissueError(
            f"its polygons span x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f}, off the slide of "
            f"{slide_size[0]} x {slide_size[1]} level-0 px; is it another slide's?"
        )
    return replace(found, tumour=shapely.MultiPolygon(inside), lesions=tuple(inside))


# --- errors ----------------------------------------------------------------------------------


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Put the file's name before what is wrong with it."""
    try:
        yield
    except (TissueError, AnnotationError, MaskError) as error:
        raise TissueError(f"{path.name}: {error}") from error
    except DAMAGE as error:
        raise TissueError(
            f"{path.name}: cannot be read as a tissue mask ({error}); export it again"
        ) from error
