"""Tissue as it was found before it was found by strips: every step on the whole picture, by SciPy.

The oracle of `tiling.tissue`: slower, and needing many times the memory of the picture.
"""

import math

import numpy as np
from scipy import ndimage

from tiling.tissue import ink as rules
from tiling.tissue import mask as settings
from tiling.tissue.glass import NEAR, every_nth, find_filler, find_glass, is_grey


def segment_tissue(thumbnail, *, mpp, config):
    """Separate tissue from glass, ink, grey and black; (H, W) bool."""
    if thumbnail.size == 0:
        return np.zeros(thumbnail.shape[:2], bool)
    return clean(find_stained(thumbnail, mpp, config), mpp, config)


def smooth_hsv(rgb, white):
    """Blur by SciPy, then hue, saturation and value."""
    full = np.array(white, np.float32).reshape(3, 1, 1) * 255
    picture = np.ascontiguousarray(np.moveaxis(rgb, -1, 0), np.float32) / full
    red, green, blue = ndimage.gaussian_filter(picture, (0, 1.0, 1.0), mode="nearest")
    value = np.maximum(np.maximum(red, green), blue)
    least = np.minimum(np.minimum(red, green), blue)
    spread = value - least
    saturation = np.zeros_like(value)
    np.divide(spread, value, out=saturation, where=(value > 0) & (least < 1))
    some = np.where(spread > 0, spread, np.float32(1))
    sector = np.where(
        blue == value,
        4 + (red - green) / some,
        np.where(green == value, 2 + (blue - red) / some, (green - blue) / some),
    )
    sector /= 6
    sector += sector < 0
    return np.where(spread > 0, sector, np.float32(0)), saturation, np.minimum(value, 1)


def find_stained(thumbnail, mpp, config):
    """What `segment_tissue` finds before holes are filled."""
    glass = find_glass(thumbnail)
    hue, saturation, value = smooth_hsv(thumbnail, glass)
    if settings._is_dark_field(value):
        return settings._find_glow(value, mpp)
    if is_grey(thumbnail):
        return settings._find_shade(value)
    off = np.abs(every_nth(thumbnail) / 255.0 - np.array(glass)).max(axis=2)
    found = every_nth(saturation)[off <= NEAR]
    flicker = float(np.median(found)) if len(found) >= max(1, 0.01 * off.size) else 0.0
    threshold = max(config.min_saturation, min(8.0 * flicker, 0.15))
    artefacts = find_artefacts(hue, saturation, value, mpp)
    return (saturation > threshold) & ~artefacts & ~find_filler(thumbnail)


def find_artefacts(hue, saturation, value, mpp):
    """Ink, grey and black."""

    def between(hues):
        return (hue >= hues[0]) & (hue < hues[1])

    def reach(length_um):
        return math.ceil(length_um / mpp[1]), math.ceil(length_um / mpp[0])

    red = (hue >= rules.RED_HUES[0]) | (hue < rules.RED_HUES[1])
    ink = between(rules.BLUE_HUES) & (saturation >= rules.BLUE_SATURATION)
    ink |= between(rules.VIOLET_HUES) & (saturation >= rules.VIOLET_SATURATION)
    ink |= red & (saturation >= rules.RED_SATURATION) & (value >= rules.RED_VALUE)
    ink |= (hue >= rules.DARK_RED_HUE) & (saturation >= rules.DARK_RED_SATURATION)
    faded = (between(rules.FADED_BLUE_HUES) | red) & (saturation >= rules.FADED_SATURATION)
    darkest = value * (1 - saturation)
    grey = darkest < rules.GREY_TRANSMISSION
    grey &= value < darkest ** np.float32(rules.GREY_DENSITIES)
    green = between(rules.GREEN_HUES) & (saturation >= rules.GREEN_SATURATION)
    artefacts = grey | green | (value < rules.BLACK_VALUE)
    fleck = artefacts & (value < rules.FLECK_VALUE)
    ink = opened(ink)
    if ink.any():
        artefacts |= faded & widened(ink, reach(rules.FADING_UM))
        artefacts |= ink
    rim = tuple(max(rules.RIM_PX, side) for side in reach(rules.RIM_UM))
    return artefacts | widened(opened(artefacts) | fleck, rim)


def opened(mask):
    """Without what is thinner than three pixels."""
    return widened(~widened(~mask, (1, 1)), (1, 1))


def widened(mask, reach):
    """Dilated by a rectangle."""
    return ndimage.maximum_filter(
        mask, [2 * side + 1 for side in reach], mode="constant", cval=False
    )


def clean(mask, mpp, config):
    """Fill small holes, and remove small and thin objects."""
    pixel_um2 = mpp[0] * mpp[1]
    largest_um2 = mask.size * pixel_um2 / 10
    holes, _ = ndimage.label(~mask)
    is_filled = np.bincount(holes.ravel()) * pixel_um2 <= min(config.max_hole_um2, largest_um2)
    is_filled[np.unique(np.concatenate([holes[0], holes[-1], holes[:, 0], holes[:, -1]]))] = False
    is_filled[0] = True
    filled = is_filled[holes]
    objects, _ = ndimage.label(filled)
    n_px = np.bincount(objects.ravel())
    is_kept = n_px * pixel_um2 >= min(config.min_object_um2, largest_um2)
    if mask.shape[0] * mpp[1] > 500 and mask.shape[1] * mpp[0] > 500:
        reach = [max(0, math.floor(50 / side) - 1) // 2 for side in (mpp[1], mpp[0])]
        wide = np.zeros(len(n_px), bool)
        wide[objects[~widened(~filled, reach)]] = True
        is_kept &= wide
    is_kept[0] = False
    return is_kept[objects]
