"""Reference masks: TIFF or PNG, one level or a pyramid of any size, read at the level needed.

Which image of a file is the mask, and what of it is background, is decided in
`tiling.readers.mask_picture`. The frame of a mask:

- if the file states its µm per pixel, its first level lies at that over the slide's: 1 for a
  mask of the slide's own size, 2 for one that begins at the slide's level 1;
- a file of one level lies at the downsample that is asked for, whatever it states; without either,
  it is taken to lie at level 0;
- a pyramid is read at the coarsest level whose downsample is at most 32, or at the level that is
  asked for.

A level too large for memory is sampled towards downsample 32, in bands.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.errors import MaskError
from tiling.readers.mask_picture import MaskLevel, MaskPicture, open_mask
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.lesions import CAMELYON16_MPP, DOWNSAMPLE

_BAND_PX = 1 << 20  # pixels processed at a time
MAX_PIXELS = 1 << 27  # larger levels are sampled; a CAMELYON16 mask at level 5 has 2e7
SAME_DOWNSAMPLE = 0.01  # relative; a resolution is rounded
ONE_LEVEL = 1.5  # times the slide's µm per pixel; below, a pyramid begins at the slide's level 0


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
    stored: MaskLevel
    downsample: float  # level-0 px per pixel


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
        The value that means tumour; where white is stored as zero, the value as it is shown.
        Default: every value but 0.
    label : int, optional
        The slide's label, if known; a normal slide need not hold `tumour_value`.
    max_pixels : int
        Larger levels are sampled.

    Raises
    ------
    EvaluationError
        If the file cannot be read, is no mask, does not state its position, contradicts what is
        stated, holds values but not the one that means tumour, or no background.
    """
    try:
        with open_mask(path) as picture:
            levels, notes = _list_levels(path, picture, downsample, mpp)
            level = _choose_level(path, levels, downsample)
            step = _sampling_step(level, max_pixels)
            tumour, found = _read_tumour(path, picture, level.stored, step, tumour_value)
            notes += tuple(f"{path.name}: {note}" for note in picture.notes)
            is_coloured = picture.is_coloured
    except MaskError as error:
        raise EvaluationError(f"{path}: {error}") from error
    _check_values(path, tumour, found, tumour_value, label, is_coloured=is_coloured)
    if is_coloured:
        notes += (f"{path.name}: a colour picture, all that is not black is taken as tumour",)
    elif tumour_value is None and len(found) > 1:
        shown = ", ".join(str(value) for value in found[:5])
        notes += (f"{path.name}: all of its values {shown} taken as tumour",)
    scale = level.downsample * step
    if step > 1:
        notes += (f"{path.name}: every {step}th pixel used, at downsample {scale:g}",)
    base = levels[0]
    size = (base.stored.size[0] * base.downsample, base.stored.size[1] * base.downsample)
    shape = (math.ceil(size[1] / scale), math.ceil(size[0] / scale))
    return TumourMask(_cover(tumour, shape), scale, size, found, notes)


# ------------------------------------------------------------ levels


def _list_levels(
    path: Path, picture: MaskPicture, downsample: float | None, mpp: float | None
) -> tuple[list[_Level], tuple[str, ...]]:
    """List the mask's levels, the largest first, with their downsamples relative to the slide."""
    first = picture.levels[0]
    found = {first.size: _Level(first, 1.0)}
    for stored in (*picture.levels[1:], *picture.copies):
        relative = _level_downsample(first, stored)
        if relative is not None and stored.size not in found:
            found[stored.size] = _Level(stored, relative)
    levels = sorted(found.values(), key=lambda level: level.downsample)
    if len(levels) == 1 and downsample is not None:
        return [replace(levels[0], downsample=downsample)], ()
    find_base = _single_level_downsample if len(levels) == 1 else _pyramid_downsample
    base, notes = find_base(path, None if picture.mpp is None else picture.mpp[0], mpp)
    scaled = [replace(level, downsample=base * level.downsample) for level in levels]
    is_stated = downsample is not None and _nearest(scaled, downsample) is None
    if is_stated and _nearest(levels, downsample or 0) is not None:
        note = (
            f"{path.name}: at downsample {downsample:g} as set by --mask-downsample, which differs "
            "from its own resolution"
        )
        return levels, (note,)
    return scaled, notes


def _level_downsample(base: MaskLevel, level: MaskLevel) -> float | None:
    """Find the downsample of a smaller copy; None if it is not one.

    A level's size is rounded, so the ratio of sizes is not quite the downsample: the power of two,
    else the whole number, that gives this size by rounding up or down is the one that was meant.
    CAMELYON16's levels are also padded to whole tiles, so that the ratio of sizes is of no use:
    97792 x 221184 pixels have a level of 3072 x 7168 at downsample 32, not 31.8 or 30.9.
    """
    across, down = base.size[0] / level.size[0], base.size[1] / level.size[1]
    if across <= 1 and down <= 1:
        return None
    ratios = (across, down)
    powers = [2 ** max(round(math.log2(ratio)), 0) for ratio in ratios]
    for n in (*powers, *map(round, ratios)):
        if all(
            _rounds_to(whole, n, side) for whole, side in zip(base.size, level.size, strict=True)
        ):
            return float(n)
    alike = abs(across - down) <= 0.01 * across
    n = 2 ** math.ceil(math.log2(max(ratios)))
    if _is_padded(base, level, n) and (not alike or n < 1.05 * max(ratios)):
        return float(n)
    return float(across + down) / 2 if alike else None


def _rounds_to(size: int, downsample: int, level_size: int) -> bool:
    return level_size in (max(size // downsample, 1), -(-size // downsample))


def _is_padded(base: MaskLevel, level: MaskLevel, downsample: int) -> bool:
    """Whether a level is the image at `downsample`, padded to whole tiles."""
    if level.tile is None:
        return False
    return all(
        level_size == -(-size // (downsample * tile)) * tile
        for size, level_size, tile in zip(base.size, level.size, level.tile, strict=True)
    )


def _choose_level(path: Path, levels: list[_Level], downsample: float | None) -> _Level:
    """Choose the level to read."""
    if downsample is None:
        coarse = [level for level in levels if level.downsample <= DOWNSAMPLE]
        return coarse[-1] if coarse else levels[0]
    level = _nearest(levels, downsample)
    if level is None:
        there = ", ".join(f"{level.downsample:g}" for level in levels)
        raise EvaluationError(
            f"{path}: no level at downsample {downsample:g}; this pyramid has {there}: give "
            "--mask-downsample one of these, or leave it out. If the pyramid begins below the "
            "slide's level 0, write its µm per pixel into the file and give --mpp"
        )
    return level


def _nearest(levels: list[_Level], downsample: float) -> _Level | None:
    """Find the level at a downsample, but for rounding."""
    level = min(levels, key=lambda level: abs(level.downsample - downsample))
    is_near = abs(level.downsample - downsample) <= SAME_DOWNSAMPLE * downsample
    return level if is_near else None


def _single_level_downsample(
    path: Path, mask_mpp: float | None, mpp: float | None
) -> tuple[float, tuple[str, ...]]:
    if mask_mpp is None:
        note = (
            f"{path.name}: one level without resolution, taken as level 0 of the slide; "
            "--mask-downsample overrides this"
        )
        return 1.0, (note,)
    scale = _whole_downsample(mask_mpp / (mpp or CAMELYON16_MPP))
    if scale is None:
        if mpp is None:
            raise _contradiction(path, mask_mpp, mpp)
        ratio = mask_mpp / mpp
        # A resolution tag is rounded, if only in its last digits.
        whole = max(round(ratio), 1)
        scale = float(whole) if abs(ratio - whole) <= 0.001 * whole else ratio
    return scale, (f"{path.name}: downsample {scale:g}, from its {mask_mpp:g} µm per pixel",)


def _pyramid_downsample(
    path: Path, mask_mpp: float | None, mpp: float | None
) -> tuple[float, tuple[str, ...]]:
    """Find the downsample of the slide at which a pyramid begins."""
    if mask_mpp is None:
        note = (
            f"{path.name}: a pyramid without resolution, its first level taken as level 0 of the "
            "slide; to place it elsewhere, write its µm per pixel into the file"
        )
        return 1.0, (note,)
    ratio = mask_mpp / (mpp or CAMELYON16_MPP)
    if 1 / ONE_LEVEL < ratio < ONE_LEVEL:  # slides differ, and so do their rounded resolutions
        return 1.0, ()
    scale = _whole_downsample(ratio)
    if scale is None or scale == 1:
        raise _contradiction(path, mask_mpp, mpp)
    note = (
        f"{path.name}: begins at downsample {scale:g}, from its {mask_mpp:g} µm per pixel; "
        "--mask-downsample overrides this"
    )
    return scale, (note,)


def _whole_downsample(ratio: float) -> float | None:
    """Find the power of two that a ratio is, but for rounding."""
    power = 2 ** max(round(math.log2(ratio)), 0)
    return float(power) if abs(ratio - power) <= SAME_DOWNSAMPLE * power else None


def _contradiction(path: Path, mask_mpp: float, mpp: float | None) -> EvaluationError:
    slide = f"the slide's {mpp:g}" if mpp else f"the {CAMELYON16_MPP:g} of a CAMELYON16 slide"
    remedy = "--mask-downsample" + ("" if mpp else ", or the slide's µm per pixel with --mpp")
    ratio = mask_mpp / (mpp or CAMELYON16_MPP)
    return EvaluationError(
        f"{path}: its pixels are {mask_mpp:g} µm, {ratio:.3g} times {slide}, which is no level of "
        f"it; give {remedy}"
    )


# ------------------------------------------------------------ pixels


def _sampling_step(level: _Level, max_pixels: int) -> int:
    if math.prod(level.stored.size) <= max_pixels:
        return 1
    return max(int(DOWNSAMPLE // level.downsample), 1)


def _read_tumour(
    path: Path, picture: MaskPicture, level: MaskLevel, step: int, tumour_value: int | None
) -> tuple[NDArray[np.bool_], tuple[int, ...]]:
    """Read every `step`-th pixel of a level, its centre one, without holding the whole level.

    Returns
    -------
    tumour : (H, W) bool
    values : tuple of int
        Found in what is not background.
    """
    width, height = level.size
    tumour = np.zeros((-(-height // step), -(-width // step)), np.bool_)
    values: set[int] = set()
    for block in picture.read(level):
        if block.values.dtype.kind not in "bui":
            raise MaskError(
                f"a mask has one channel of whole numbers, this file has {block.values.dtype}; "
                "convert it, or give polygons"
            )
        rows = _sampled(block.y, block.values.shape[0], step, tumour.shape[0])
        columns = _sampled(block.x, block.values.shape[1], step, tumour.shape[1])
        offset = step // 2
        picked = np.ix_(rows * step + offset - block.y, columns * step + offset - block.x)
        drawn, found = block.drawn[picked], block.values[picked]
        values.update(_distinct(found[drawn]))
        if tumour_value is not None:
            drawn = drawn & (found == tumour_value)
        tumour[np.ix_(rows, columns)] = drawn
    return tumour, tuple(sorted(values))


def _sampled(start: int, length: int, step: int, most: int) -> NDArray[np.int64]:
    """Rows or columns of the sampled mask whose centre pixel lies in a block."""
    offset = step // 2
    first, last = -(-(start - offset) // step), -(-(start + length - offset) // step)
    return np.arange(max(first, 0), min(last, most))


def _check_values(
    path: Path,
    tumour: NDArray[np.bool_],
    found: tuple[int, ...],
    tumour_value: int | None,
    label: int | None,
    *,
    is_coloured: bool,
) -> None:
    """Refuse a mask without the value that means tumour, or without anything else."""
    if tumour_value is not None and is_coloured:
        raise EvaluationError(
            f"{path}: a colour picture has no value {tumour_value}; save the mask with one channel "
            "of whole numbers, or leave --tumour-value out (all that is not black is tumour)"
        )
    shown = ", ".join(str(value) for value in found[:5])
    if tumour_value is not None and found and tumour_value not in found and label != 0:
        raise EvaluationError(
            f"{path}: no pixel has the tumour value {tumour_value}; its values are 0 and {shown}: "
            "give --tumour-value one of these, leave it out (all but 0 is tumour), or list "
            "the slide as normal with --slides"
        )
    if tumour.all():
        raise EvaluationError(
            f"{path}: no pixel is background, so that the whole slide would be one lesion; its "
            f"values are {shown}: give the one that means tumour with --tumour-value, or write the "
            "mask with 0 where there is no tumour"
        )


def _distinct(values: NDArray[Any]) -> set[int]:
    found: set[int] = set()
    for band in np.array_split(values, values.size // _BAND_PX + 1):
        if band.dtype.itemsize == 1 and band.dtype.kind in "bu":
            found.update(np.flatnonzero(np.bincount(band)).tolist())
        else:
            found.update(np.unique(band).tolist())
    return {int(value) for value in found}


def _cover(tumour: NDArray[np.bool_], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Extend a level that was rounded down, so that the slide's last pixels have a place on it."""
    height, width = tumour.shape
    if (height, width) == shape:
        return tumour
    whole = np.zeros(shape, dtype=bool)
    height, width = min(height, shape[0]), min(width, shape[1])
    whole[:height, :width] = tumour[:height, :width]
    return whole
