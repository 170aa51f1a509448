"""Reference masks: TIFF, one level or a pyramid of any size, read at the level that is needed.

The frame of a mask:

- a pyramid starts at the slide's level 0; it is read at the coarsest level whose own downsample is
  at most 32, or at the level that is asked for;
- a file of one level is at the downsample that is asked for; else, if it tells its µm per pixel,
  at that over the slide's; else it is taken to lie at level 0.

A level too large for memory is sampled towards downsample 32, in bands.
"""

import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.lesions import CAMELYON16_MPP, DOWNSAMPLE

_BAND_PX = 1 << 20  # pixels looked at in one go
MAX_PIXELS = 1 << 27  # larger levels are sampled; a CAMELYON16 mask at level 5 has 2e7

_DECODING_ERRORS = (
    tifffile.TiffFileError,
    OSError,
    ValueError,
    RuntimeError,  # every codec's own error is one
    LookupError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class TumourMask:
    """A mask as the evaluation uses it."""

    tumour: NDArray[np.bool_]  # (H, W), covers the slide
    downsample: float  # level-0 px per mask pixel
    size: tuple[float, float]  # (width, height) of the slide, level-0 px
    values: tuple[int, ...]  # found in the file, without 0
    notes: tuple[str, ...]  # what was assumed


@dataclass(frozen=True)
class _Level:
    page: Any
    downsample: float  # relative to the file's first level


def read_mask(
    path: Path,
    *,
    downsample: float | None = None,
    mpp: float | None = None,
    tumour_value: int | None = None,
    label: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> TumourMask:
    """Read a mask at the evaluation's downsample.

    Parameters
    ----------
    downsample : level-0 px per mask pixel, optional
        Of the file's only level, or the level of the pyramid to read.
    mpp : µm per level-0 px of the slide, optional
        Turns the file's own µm per pixel into a downsample.
    tumour_value : int, optional
        The value that means tumour. Default: every value but 0.
    label : int, optional
        The slide's label, if told; a normal slide need not hold `tumour_value`.
    max_pixels : int
        Larger levels are sampled.

    Raises
    ------
    EvaluationError
        If the file cannot be read, is no mask, does not say where it lies, or holds values but not
        the one that means tumour.
    """
    try:
        with tifffile.TiffFile(path) as file:
            levels = _list_levels(path, file)
            level, scale, notes = _choose_level(path, levels, downsample, mpp)
            step = _sampling_step(level, scale, max_pixels)
            values = _read_level(path, level, step)
            base = levels[0].page
    except EvaluationError:
        raise
    except _DECODING_ERRORS as error:
        raise EvaluationError(
            f"{path}: cannot be read as a TIFF mask ({error}); write it again, one channel of "
            "whole numbers"
        ) from error
    if step > 1:
        notes += (f"{path.name}: every {step}th pixel used, at downsample {scale * step:g}",)
    if len(levels) > 1:
        size = (float(base.imagewidth), float(base.imagelength))
    else:
        size = (base.imagewidth * scale, base.imagelength * scale)
    tumour, found = _find_tumour(path, values, tumour_value, label)
    if tumour_value is None and len(found) > 1:
        shown = ", ".join(str(value) for value in found[:5])
        notes += (f"{path.name}: all of its values {shown} taken as tumour",)
    shape = (math.ceil(size[1] / (scale * step)), math.ceil(size[0] / (scale * step)))
    return TumourMask(_cover(tumour, shape), scale * step, size, found, notes)


# ------------------------------------------------------------ levels


def _list_levels(path: Path, file: tifffile.TiffFile) -> list[_Level]:
    """List the first image and its smaller copies, the largest first."""
    pages: list[Any] = []
    for page in file.pages:
        pages += [page, *(page.pages or ())]
    base = pages[0]
    levels = {(base.imagewidth, base.imagelength): _Level(base, 1.0)}
    n_alike = sum((page.imagewidth, page.imagelength) in levels for page in pages)
    if n_alike > 1:
        raise EvaluationError(
            f"{path}: holds {n_alike} images of {base.imagewidth} x {base.imagelength} pixels "
            "where a mask is one; write it again, as an array of rows and columns only"
        )
    for page in pages[1:]:
        downsample = _level_downsample(base, page)
        key = (page.imagewidth, page.imagelength)
        if downsample is not None and key not in levels:
            levels[key] = _Level(page, downsample)
    return sorted(levels.values(), key=lambda level: level.downsample)


def _level_downsample(base: Any, page: Any) -> float | None:
    """Tell the downsample of a smaller copy; None if the page is no smaller copy.

    A level's size is rounded, so the ratio of sizes is not quite the downsample: the power of two,
    else the whole number, that gives this size by rounding up or down is the one that was meant.
    CAMELYON16's levels are filled up to whole tiles besides, and sizes told so are of no use:
    97792 x 221184 pixels have a level of 3072 x 7168 at downsample 32, not 31.8 or 30.9.
    """
    across, down = base.imagewidth / page.imagewidth, base.imagelength / page.imagelength
    if across <= 1 and down <= 1:
        return None
    ratios = (across, down)
    powers = [2 ** max(round(math.log2(ratio)), 0) for ratio in ratios]
    for n in (*powers, *map(round, ratios)):
        if _rounds_to(base.imagewidth, n, page.imagewidth) and _rounds_to(
            base.imagelength, n, page.imagelength
        ):
            return float(n)
    alike = abs(across - down) <= 0.01 * across
    n = 2 ** math.ceil(math.log2(max(ratios)))
    if _is_padded(base, page, n) and (not alike or n < 1.05 * max(ratios)):
        return float(n)
    return float(across + down) / 2 if alike else None


def _rounds_to(size: int, downsample: int, level_size: int) -> bool:
    return level_size in (max(size // downsample, 1), -(-size // downsample))


def _is_padded(base: Any, page: Any, downsample: int) -> bool:
    """Tell whether a level is the image at `downsample`, filled up to whole tiles."""
    if not page.is_tiled:
        return False
    return all(
        level_size == -(-size // (downsample * tile)) * tile
        for size, level_size, tile in (
            (base.imagewidth, page.imagewidth, page.tilewidth),
            (base.imagelength, page.imagelength, page.tilelength),
        )
    )


def _choose_level(
    path: Path, levels: list[_Level], downsample: float | None, mpp: float | None
) -> tuple[_Level, float, tuple[str, ...]]:
    """Choose the level to read and tell its downsample relative to the slide."""
    if len(levels) == 1:
        if downsample is not None:
            return levels[0], downsample, ()
        scale, note = _single_level_downsample(path, levels[0].page, mpp)
        return levels[0], scale, (note,)
    if downsample is None:
        level = [level for level in levels if level.downsample <= DOWNSAMPLE][-1]
        return level, level.downsample, ()
    level = min(levels, key=lambda level: abs(level.downsample - downsample))
    if abs(level.downsample - downsample) > 0.01 * downsample:
        there = ", ".join(f"{level.downsample:g}" for level in levels)
        raise EvaluationError(
            f"{path}: no level at downsample {downsample:g}; this pyramid has {there}: "
            "give --mask-downsample one of these, or leave it out (only a file of one level can "
            "lie at another)"
        )
    return level, level.downsample, ()


def _single_level_downsample(path: Path, page: Any, mpp: float | None) -> tuple[float, str]:
    mask_mpp = _page_mpp(page)
    if mask_mpp is None:
        note = (
            f"{path.name}: one level without resolution, taken as level 0 of the slide; "
            "--mask-downsample says otherwise"
        )
        return 1.0, note
    ratio = mask_mpp / (mpp or CAMELYON16_MPP)
    power, whole = 2 ** max(round(math.log2(ratio)), 0), max(round(ratio), 1)
    certain = abs(ratio - power) <= 0.01 * power
    if mpp is None and not certain:
        raise EvaluationError(
            f"{path}: its pixels are {mask_mpp:g} µm, {ratio:.3g} times those of a CAMELYON16 "
            "slide; give --mask-downsample, or the slide's µm per pixel with --mpp"
        )
    if certain:
        scale = float(power)
    else:  # a resolution tag is rounded, if only in its last digits
        scale = float(whole) if abs(ratio - whole) <= 0.001 * whole else ratio
    return scale, f"{path.name}: downsample {scale:g}, from its {mask_mpp:g} µm per pixel"


def _page_mpp(page: Any) -> float | None:
    """Read µm per pixel from the resolution tags; None where they say nothing usable."""
    unit = page.tags.valueof("ResolutionUnit", default=1)
    um = {2: 25_400.0, 3: 10_000.0}.get(int(unit))  # inch, centimetre
    value = page.tags.valueof("XResolution", default=None)
    if um is None or value is None or 0 in value:
        return None
    mpp = float(um * value[1] / value[0])
    # 72 or 96 dots per inch (265 to 353 µm) is what drawing programs write when they do not know.
    usable = 0.05 <= mpp <= 100
    return mpp if usable else None


# ------------------------------------------------------------ pixels


def _sampling_step(level: _Level, scale: float, max_pixels: int) -> int:
    if level.page.imagewidth * level.page.imagelength <= max_pixels:
        return 1
    return max(int(DOWNSAMPLE // scale), 1)


def _read_level(path: Path, level: _Level, step: int) -> NDArray[Any]:
    """Read every `step`-th pixel of a level, its centre one, without holding the whole level."""
    page = level.page
    if page.samplesperpixel != 1 or page.dtype is None or page.dtype.kind not in "bui":
        raise EvaluationError(
            f"{path}: a mask has one channel of whole numbers, this file has "
            f"{page.samplesperpixel} of {page.dtype}; convert it, or give polygons"
        )
    if step == 1:
        return np.asarray(page.asarray()).reshape(page.imagelength, page.imagewidth)
    offset = step // 2
    shape = (-(-page.imagelength // step), -(-page.imagewidth // step))
    sampled = np.zeros(shape, dtype=page.dtype)
    for segment, index, size in page.segments():
        if segment is None:  # a sparse tile: nothing is written there
            continue
        row, col = index[-3], index[-2]
        rows = np.arange(-(-(row - offset) // step), -(-(row + size[-3] - offset) // step))
        cols = np.arange(-(-(col - offset) // step), -(-(col + size[-2] - offset) // step))
        rows, cols = rows[(rows >= 0) & (rows < shape[0])], cols[(cols >= 0) & (cols < shape[1])]
        plane = segment.reshape(segment.shape[-3:-1])
        picked = plane[np.ix_(rows * step + offset - row, cols * step + offset - col)]
        sampled[np.ix_(rows, cols)] = picked
    return sampled


def _find_tumour(
    path: Path, values: NDArray[Any], tumour_value: int | None, label: int | None
) -> tuple[NDArray[np.bool_], tuple[int, ...]]:
    found = tuple(value for value in _distinct(values) if value != 0)
    if tumour_value is None:
        return values != 0, found
    if found and tumour_value not in found and label != 0:
        shown = ", ".join(str(value) for value in found[:5])
        raise EvaluationError(
            f"{path}: no pixel has the tumour value {tumour_value}; its values are 0 and {shown}: "
            "give --tumour-value one of these, leave it out (all but 0 is tumour), or say with "
            "--slides that the slide is normal"
        )
    return values == tumour_value, found


def _distinct(values: NDArray[Any]) -> list[int]:
    found: set[int] = set()
    for band in np.array_split(values.ravel(), values.size // _BAND_PX + 1):
        if band.dtype.itemsize == 1 and band.dtype.kind in "bu":
            found.update(np.flatnonzero(np.bincount(band)).tolist())
        else:
            found.update(np.unique(band).tolist())
    return sorted(int(value) for value in found)


def _cover(tumour: NDArray[np.bool_], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Extend a level that was rounded down, so that the slide's last pixels have a place on it."""
    height, width = tumour.shape
    if (height, width) == shape:
        return tumour
    whole = np.zeros(shape, dtype=bool)
    height, width = min(height, shape[0]), min(width, shape[1])
    whole[:height, :width] = tumour[:height, :width]
    return whole
