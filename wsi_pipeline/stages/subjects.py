"""What is explained: patches of slides and single images, their pixels and their masks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from tiling.annotation.raster import draw_area
from tiling.annotation.slide_annotation import read_annotation_of_store
from wsi_pipeline.cohort.image_masks import read_masks
from wsi_pipeline.cohort.kinds import ImageCohort
from wsi_pipeline.cohort.slides import open_store
from wsi_pipeline.cohort.stain_view import fit_slide_map, normalise_image
from wsi_pipeline.cohort.stains import StainMap
from wsi_pipeline.config.settings import StainMethod
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.errors import StageError
from wsi_pipeline.layout import RunFolder


@dataclass(frozen=True)
class Subject:
    """What is explained: one patch of a slide, or one image."""

    row: int  # of the slide's patch store, or of the run's images
    name: str  # the first part of its files' names
    label: int  # 1, 0, or -1: unknown
    score: float
    entry: SlideEntry | None = None  # the slide; None: an image


@dataclass(frozen=True)
class Pixels:
    """A subject, read."""

    values: NDArray[np.uint8]  # (H, W, C)
    um_per_px: float | None = None
    box_l0: tuple[int, int, int, int] | None = None  # x, y, width, height, level-0 px


def read_pixels(run: RunFolder, one: Subject, *, stain: StainMethod | None = None) -> Pixels:
    """Read the pixels of a patch or an image, as a model with this `preprocess.stain` does."""
    if one.entry is None:
        image = np.array(ImageCohort(run).array().pixels[one.row])
        return Pixels(normalise_image(image, stain, name=one.name))
    with open_store(run, one.entry) as store:
        pixels, unreadable = store.read_flagged(np.array([one.row]))
        if unreadable[0]:
            raise StageError(f"{one.entry.slide_id}: the patch {one.name} cannot be read")
        patch = np.asarray(pixels[0])
        if stain and (mapped := _fit_once(run, one.entry, store.fingerprint, stain)):
            patch = mapped(patch)
        geometry = store.geometry
        x, y = (int(v) for v in store.coords[one.row])
        box = (x, y, geometry.patch_l0, geometry.patch_l0_y)
        return Pixels(patch, geometry.target_mpp, box)


@lru_cache(maxsize=8)
def _fit_once(
    run: RunFolder, entry: SlideEntry, fingerprint: str, stain: StainMethod
) -> StainMap | None:
    """Fit the map of a slide's stains; kept, for many patches of one slide may be explained."""
    with open_store(run, entry) as store:
        return fit_slide_map(store, stain)


def crop_pixels(pixels: Pixels, shape: tuple[int, ...]) -> Pixels:
    """Cut out the centre that a model sees, with its place."""
    height, width = pixels.values.shape[:2]
    top, left = (height - shape[0]) // 2, (width - shape[1]) // 2
    cut = pixels.values[top : top + shape[0], left : left + shape[1]]
    if pixels.box_l0 is None:
        return replace(pixels, values=cut)
    x, y, wide, high = pixels.box_l0
    across, down = wide / width, high / height  # level-0 px per px
    box = (x + left * across, y + top * down, shape[1] * across, shape[0] * down)
    return replace(pixels, values=cut, box_l0=tuple(round(v) for v in box))


def describe_place(pixels: Pixels) -> dict[str, Any] | None:
    """Describe where on a slide pixels are; None: they are of no slide."""
    if pixels.box_l0 is None or pixels.um_per_px is None:
        return None
    names = ("x_l0", "y_l0", "width_l0", "height_l0")
    return {**dict(zip(names, pixels.box_l0, strict=True)), "um_per_px": pixels.um_per_px}


class Masks:
    """Masks of patches and images: of images the files of their table, of patches the outlines.

    Parameters
    ----------
    run : RunFolder
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._of_images: dict[str, NDArray[np.uint8]] | None = None
        self._outlines: dict[str, Any] = {}

    def read(self, one: Subject) -> NDArray[np.bool_] | None:
        """Read a subject's mask, on its pixels: (H, W), True on the object; None: it has none.

        A slide of label 0 without an annotation has empty masks; one of label 1 whose annotation
        is missing or outlines nothing has none.
        """
        if one.entry is None:
            mask = self._read_images().get(one.name)
            return None if mask is None else np.asarray(mask == 1)
        outlines = self.outlines_of(one.entry)
        if outlines is None:
            return None
        with open_store(self.run, one.entry) as store:
            geometry, corner = store.geometry, store.coords[one.row]
        there = shapely.transform(outlines, lambda points: points - corner)
        shape = (geometry.patch_px, geometry.patch_px)
        return draw_area(there, shape=shape, pixel_l0=geometry.scale)

    def outlines_of(self, entry: SlideEntry) -> Any:
        """Read what is outlined on a slide: a MultiPolygon, level-0 px; None: it is not known."""
        if entry.slide_id not in self._outlines:
            self._outlines[entry.slide_id] = self._read_outlines(entry)
        return self._outlines[entry.slide_id]

    def _read_outlines(self, entry: SlideEntry) -> Any:
        if entry.annotation is None:
            return shapely.MultiPolygon() if entry.label == 0 else None
        with open_store(self.run, entry) as store:
            found = read_annotation_of_store(entry.annotation, store)
        return found.tumour if found.lesions or entry.label != 1 else None

    def _read_images(self) -> dict[str, NDArray[np.uint8]]:
        if self._of_images is None:
            self._of_images = read_masks(self.run.tiles, ImageCohort(self.run).entries)
        return self._of_images


def find_crossed(
    outlines: Any, coords: NDArray[np.int64], size: tuple[float, float]
) -> NDArray[np.int64]:
    """Find the patches that an outline crosses.

    Parameters
    ----------
    outlines : shapely MultiPolygon, level-0 px
    coords : (N, 2) x, y, level-0 px
        Top-left corners.
    size : (width, height), level-0 px

    Returns
    -------
    numbers : (n,)

    Examples
    --------
    >>> square = shapely.MultiPolygon([shapely.box(5, 5, 30, 30)])
    >>> find_crossed(square, np.array([[0, 0], [10, 10], [20, 20], [40, 0]]), (10, 10)).tolist()
    [0, 2]
    """
    lines = outlines.boundary
    shapely.prepare(lines)
    boxes = shapely.box(*coords.T, *(coords + np.asarray(size)).T)
    return np.flatnonzero(shapely.intersects(lines, boxes))


def choose_masked(
    candidates: Sequence[Subject], masks: Masks, count: int, seed: int
) -> tuple[Subject, ...]:
    """Draw subjects whose mask has both object and background, and keep their order.

    Parameters
    ----------
    candidates : sequence of Subject
    masks : Masks
    count : int
        At most so many.
    seed : int
    """
    chosen: list[int] = []
    for number in np.random.default_rng(seed).permutation(len(candidates)).tolist():
        if len(chosen) == count:
            break
        mask = masks.read(candidates[number])
        if mask is not None and mask.any() and not mask.all():
            chosen.append(number)
    return tuple(candidates[number] for number in sorted(chosen))
