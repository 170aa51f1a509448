"""Where tissue is: a mask on a small picture of the slide.

Pure arrays: nothing here opens a file. Made for bright-field stains (haematoxylin and eosin, DAB,
haematoxylin alone): glass is bright and has one colour, tissue is coloured. Ink, black and grey are
left out by `tiling.tissue.ink`. In a grey picture tissue is what is darker than glass. A dark-field
(fluorescence) slide is recognised by its lack of anything bright; there tissue is what shines.
docs/tissue.md gives the reason for each rule.
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import TissueConfig
from tiling.errors import TissueError
from tiling.geometry import check_tissue_config
from tiling.threads import map_in_threads
from tiling.tissue.colour import bands, sample_saturation, saturation_and_value, smooth_rows
from tiling.tissue.glass import (
    NEAR,
    Colour,
    find_filler,
    find_glass,
    glass_flicker,
    is_grey,
    sample_step,
)
from tiling.tissue.ink import BLACK_VALUE, artefact_reach, classify, find_artefacts, widen
from tiling.tissue.objects import Objects, find_objects, find_runs

PictureKind = Literal["stained", "grey", "dark field"]

# All in HSV, 0 to 1; chosen on public slides (docs/tissue.md) and the demo's drawn ones.
FLICKERS = 8.0  # of glass; what is more saturated is no glass
MAX_THRESHOLD = 0.15  # however much glass flickers
MIN_WIDTH_UM = 50.0  # objects thinner all along are hairs, scratches and the rims of bubbles
SMOOTHING_PX = 1.0  # Gaussian sigma: takes away JPEG and sensor noise
# Dark field: next to nothing as bright as glass, most of it near black, and what is not black
# begins dim. On a bright-field slide with much unscanned black, what is not black is not dim.
BRIGHT_VALUE, MAX_BRIGHT_SHARE, DARK_MEDIAN = 0.7, 0.05, 0.25
UNSCANNED_VALUE, DIM_QUARTILE = 0.05, 0.3
MIN_SHADE, MAX_SHADE = 0.06, 0.15  # of a grey picture: so much darker than glass is tissue
MIN_GLOW, MAX_GLOW = 0.04, 0.1  # bounds of Otsu's threshold on the value in dark field
SATURATED = np.uint8(128)  # a flag next to those of `tiling.tissue.ink`
GLOW_SMOOTHING_UM = 25.0  # Gaussian sigma that bridges the dark between lit nuclei


def segment_tissue(
    thumbnail: NDArray[np.uint8],
    *,
    mpp: tuple[float, float],
    config: TissueConfig,
    threads: int = 1,
) -> NDArray[np.bool_]:
    """Separate tissue from glass, ink, grey and black.

    HSV saturation against the colour of the slide's glass, above `min_saturation` or what glass
    itself reaches; without artefacts. In a grey picture what is darker than glass, in dark field
    what shines. Then small holes are filled, small and thin objects removed.

    Parameters
    ----------
    thumbnail : (H, W, 3) uint8, RGB
    mpp : (x, y), µm per px of the thumbnail
        May differ from ``config.mpp``; areas are measured with it.
    config : TissueConfig
    threads : int
        Strips worked on at a time.

    Returns
    -------
    mask : (H, W) bool
        True on tissue. All False on bare glass: that is no error here.

    Raises
    ------
    TissueError
        If the thumbnail is no RGB picture.
    GridError
        If a setting is out of range.

    References
    ----------
    .. [1] N. Otsu, "A threshold selection method from gray-level histograms", IEEE Transactions on
       Systems, Man, and Cybernetics 9 (1979) 62: in dark field. The bounds on it are ours.
    """
    return find_kind_and_tissue(thumbnail, mpp=mpp, config=config, threads=threads)[1]


def find_kind_and_tissue(
    thumbnail: NDArray[np.uint8],
    *,
    mpp: tuple[float, float],
    config: TissueConfig,
    threads: int = 1,
) -> tuple[PictureKind, NDArray[np.bool_]]:
    """Find the tissue as `segment_tissue` does, and by which of its rules."""
    check_tissue_config(config)
    _check_thumbnail(thumbnail, mpp)
    if thumbnail.size == 0:
        return "stained", np.zeros(thumbnail.shape[:2], bool)
    kind, mask = _find_stained(thumbnail, mpp, config, threads)
    _clean_mask(mask, mpp=mpp, config=config)
    return kind, mask


def _find_stained(
    thumbnail: NDArray[np.uint8],
    mpp: tuple[float, float],
    config: TissueConfig,
    threads: int,
) -> tuple[PictureKind, NDArray[np.bool_]]:
    """Find what `segment_tissue` finds before holes are filled.

    By strips of rows: of the picture's size are only one byte of flags a pixel, and the mask.
    """
    glass = find_glass(thumbnail)
    grey = is_grey(thumbnail)
    if grey:  # dark field or grey
        return _find_by_value(thumbnail, glass, mpp, grey=True)
    sample = sample_saturation(
        thumbnail, sample_step(thumbnail.shape), sigma=SMOOTHING_PX, white=glass
    )
    flicker = glass_flicker(thumbnail, sample, glass)
    threshold = max(config.min_saturation, min(FLICKERS * flicker, MAX_THRESHOLD))
    flags = np.empty(thumbnail.shape[:2], np.uint8)

    def classify_rows(rows: slice) -> int:
        blurred = smooth_rows(thumbnail, rows, sigma=SMOOTHING_PX, white=glass)
        saturation, value = saturation_and_value(blurred)
        found = classify(blurred, saturation, value)
        found |= SATURATED * ((saturation > threshold) & ~_find_filler(thumbnail, rows))
        flags[rows] = found
        return int(np.count_nonzero(value > BRIGHT_VALUE))

    strips = bands(flags.shape)
    n_bright = sum(map_in_threads(classify_rows, strips, threads=threads))
    if n_bright / flags.size < MAX_BRIGHT_SHARE:
        kind, mask = _find_by_value(thumbnail, glass, mpp, grey=False)
        if kind == "dark field":
            return kind, mask
    mask = np.empty(flags.shape, np.bool_)
    reach = artefact_reach(mpp)

    def settle_rows(rows: slice) -> None:
        first = max(0, rows.start - reach)
        artefacts = find_artefacts(flags[first : rows.stop + reach], mpp=mpp)
        inner = slice(rows.start - first, rows.stop - first)
        mask[rows] = ((flags[rows] & SATURATED) != 0) & ~artefacts[inner]

    strips = bands(flags.shape, least=4 * reach)
    for _ in map_in_threads(settle_rows, strips, threads=threads):
        pass
    return "stained", mask


def _find_filler(thumbnail: NDArray[np.uint8], rows: slice) -> NDArray[np.bool_]:
    first = max(0, rows.start - 1)
    filler = find_filler(thumbnail[first : rows.stop + 1])
    return filler[rows.start - first : rows.stop - first]


def _find_by_value(
    thumbnail: NDArray[np.uint8], glass: Colour, mpp: tuple[float, float], *, grey: bool
) -> tuple[PictureKind, NDArray[np.bool_]]:
    """Find tissue by its brightness alone, in dark field or in a grey picture."""
    value = np.empty(thumbnail.shape[:2], np.float32)
    for rows in bands(value.shape):
        blurred = smooth_rows(thumbnail, rows, sigma=SMOOTHING_PX, white=glass)
        value[rows] = saturation_and_value(blurred)[1]
    if _is_dark_field(value):
        return "dark field", _find_glow(value, mpp)
    return ("grey", _find_shade(value)) if grey else ("stained", np.zeros(value.shape, np.bool_))


def _find_shade(value: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Find what is darker than glass in a grey picture, and not black."""
    near_glass = value[value > 1 - NEAR]
    flicker = 1 - float(np.median(near_glass)) if near_glass.size else 0.0
    shade: NDArray[np.bool_] = value < 1 - max(MIN_SHADE, min(FLICKERS * flicker, MAX_SHADE))
    return shade & (value >= BLACK_VALUE)


def _check_thumbnail(thumbnail: NDArray[np.uint8], mpp: tuple[float, float]) -> None:
    if thumbnail.ndim != 3 or thumbnail.shape[2] != 3 or thumbnail.dtype != np.uint8:
        raise TissueError(
            f"a thumbnail is (H, W, 3) uint8 RGB, got {thumbnail.shape} {thumbnail.dtype}"
        )
    if not all(math.isfinite(side) and side > 0 for side in mpp):
        raise TissueError(f"mpp of the thumbnail must be positive µm per pixel, got {mpp}")


def _is_dark_field(value: NDArray[np.float32]) -> bool:
    if float(np.mean(value > BRIGHT_VALUE)) >= MAX_BRIGHT_SHARE:
        return False
    if float(np.median(value)) >= DARK_MEDIAN:
        return False
    lit = value[value > UNSCANNED_VALUE]
    return not lit.size or float(np.quantile(lit, 0.25)) < DIM_QUARTILE


def _find_glow(value: NDArray[np.float32], mpp: tuple[float, float]) -> NDArray[np.bool_]:
    from scipy import ndimage  # a quarter of a second that only dark field needs

    sigma = (GLOW_SMOOTHING_UM / mpp[1], GLOW_SMOOTHING_UM / mpp[0])  # rows go along y
    glow = ndimage.gaussian_filter(value, sigma, mode="nearest")
    mask: NDArray[np.bool_] = glow > min(max(_otsu(glow), MIN_GLOW), MAX_GLOW)
    return mask


def _otsu(values: NDArray[np.float32]) -> float:
    """Otsu's threshold; 0 where all values are one."""
    from skimage.filters import threshold_otsu

    if values.size == 0 or values.min() == values.max():
        return 0.0
    return float(threshold_otsu(values))  # type: ignore[no-untyped-call]


def _clean_mask(mask: NDArray[np.bool_], *, mpp: tuple[float, float], config: TissueConfig) -> None:
    """Fill small holes in a mask, then remove small and thin objects from it."""
    pixel_um2 = mpp[0] * mpp[1]
    # A picture smaller than the smallest object would lose all its tissue: there a tenth counts.
    largest_um2 = mask.size * pixel_um2 / 10
    holes = find_objects(mask, value=False)
    is_filled = holes.n_px * pixel_um2 <= min(config.max_hole_um2, largest_um2)
    holes.paint(mask, is_filled & ~holes.at_border(), value=True)
    del holes
    objects = find_objects(mask)
    is_kept = objects.n_px * pixel_um2 >= min(config.min_object_um2, largest_um2)
    if mask.shape[0] * mpp[1] > 10 * MIN_WIDTH_UM and mask.shape[1] * mpp[0] > 10 * MIN_WIDTH_UM:
        is_kept &= _are_wide(objects, mask, mpp)
    objects.paint(mask, ~is_kept, value=False)


def _are_wide(
    objects: Objects, mask: NDArray[np.bool_], mpp: tuple[float, float]
) -> NDArray[np.bool_]:
    """Find the objects that contain a square of side `MIN_WIDTH_UM`; (n_objects,)."""
    down, across = (max(0, math.floor(MIN_WIDTH_UM / side) - 1) // 2 for side in (mpp[1], mpp[0]))
    wide = np.zeros(len(objects.n_px), np.bool_)
    for rows in bands(mask.shape, least=4 * down):
        first = max(0, rows.start - down)
        inner = ~widen(~mask[first : rows.stop + down], (down, across))
        inner = inner[rows.start - first : rows.stop - first]
        row, start, _ = find_runs(inner, first_row=rows.start)
        wide |= objects.holding(objects.runs_at(row, start))
    return wide
