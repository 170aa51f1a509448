"""What is no tissue though it is no glass: pen strokes, dirt, shadows, edges, unscanned black.

Works on the smoothed colours of a picture whose glass is white.

Stains absorb some colours far more than others, black and grey things absorb all alike. Let D be
the optical density, the negative logarithm of the transmitted share. Haematoxylin absorbs red,
green and blue as 0.65 : 0.70 : 0.29, eosin as 0.07 : 0.99 : 0.11, DAB as 0.27 : 0.57 : 0.78 [1]_,
so that the weakest density is at most two fifths of the strongest; in dense tissue, which lets
next to nothing through, and where haematoxylin meets DAB the two are closer. Where the weakest is
more than four fifths of the strongest, the thing is grey. In HSV the weakest is -log V, the
strongest -log (V (1 - S)).

References
----------
.. [1] A. C. Ruifrok and D. A. Johnston, "Quantification of histochemical staining by color
   deconvolution", Analytical and Quantitative Cytology and Histology 23 (2001) 291.
"""

import math

import numpy as np
from numpy.typing import NDArray

from tiling.tissue.colour import hue_of

Values = NDArray[np.float32]

BLACK_VALUE = 0.2  # dense nuclei at 8 µm/px stay above 0.3
GREY_DENSITIES = 0.8  # weakest density over the strongest; above it a thing is grey
GREY_TRANSMISSION = 0.82  # of the darkest channel; above it the colour is too faint to classify
FLECK_VALUE = 0.5  # what is darker has a rim though it be thin
GREEN_HUES, GREEN_SATURATION = (75 / 360, 195 / 360), 0.1  # yellow-green to cyan: in no stain
# Blue ink is more saturated than haematoxylin, whose hue is higher: alone or next to DAB it reaches
# 225 degrees, but is never as saturated as ink.
BLUE_HUES, BLUE_SATURATION = (195 / 360, 226 / 360), 0.4
VIOLET_HUES, VIOLET_SATURATION = (226 / 360, 250 / 360), 0.6
# Eosin lies below in hue, DAB above and darker, blood within but paler.
RED_HUES, RED_SATURATION, RED_VALUE = (347 / 360, 17 / 360), 0.72, 0.45
DARK_RED_HUE, DARK_RED_SATURATION = 333 / 360, 0.85  # of red ink over tissue, however dark
FADING_UM = 120.0  # so far from opaque ink, paler of its hues is its faded rim
FADED_BLUE_HUES, FADED_SATURATION = (195 / 360, 245 / 360), 0.06
RIM_UM, RIM_PX = 16.0, 2  # blur around artefacts, the longer of both
OPENING_PX = 1  # what is thinner than three pixels is left out
MIN_SATURATION = min(GREEN_SATURATION, FADED_SATURATION)  # below, the hue does not matter
BAND_PX = 2**18  # about; worked on at a time
DARK, FLECK, INK, FADED = (np.uint8(1 << bit) for bit in range(4))


def classify(rgb: NDArray[np.float32], saturation: Values, value: Values) -> NDArray[np.uint8]:
    """Mark what may be ink, grey or black: `DARK`, `FLECK`, `INK` and `FADED`, one bit each.

    Parameters
    ----------
    rgb : (3, H, W) float32
        Smoothed, 1 being the colour of glass.
    saturation, value : (H, W) float32, 0 to 1
        Of these colours.

    Returns
    -------
    flags : (H, W) uint8
    """
    flags = np.zeros(value.shape, np.uint8)
    darkest = value * (1 - saturation)
    dark = np.flatnonzero(darkest < GREY_TRANSMISSION)
    # weakest density > 4/5 of the strongest <=> V < darkest^(4/5), without a logarithm
    weakest = value.ravel()[dark]
    grey = weakest < darkest.ravel()[dark] ** np.float32(GREY_DENSITIES)
    flags.ravel()[dark[grey]] = DARK
    flags[value < BLACK_VALUE] = DARK
    coloured = np.flatnonzero(saturation >= MIN_SATURATION)
    if len(coloured):
        chosen = [array.ravel()[coloured] for array in (*rgb, saturation, value)]
        hue = hue_of(np.stack(chosen[:3]))
        flags.ravel()[coloured] |= _classify_hue(hue, *chosen[3:])
    flags[((flags & DARK) != 0) & (value < FLECK_VALUE)] |= FLECK
    return flags


def _classify_hue(hue: Values, saturation: Values, value: Values) -> NDArray[np.uint8]:
    """Mark green, opaque blue and red ink, and what may be their faded rim."""
    blue = (hue >= BLUE_HUES[0]) & (hue < BLUE_HUES[1])
    violet = (hue >= VIOLET_HUES[0]) & (hue < VIOLET_HUES[1])
    red = (hue >= RED_HUES[0]) | (hue < RED_HUES[1])
    green = (hue >= GREEN_HUES[0]) & (hue < GREEN_HUES[1]) & (saturation >= GREEN_SATURATION)
    ink = (blue & (saturation >= BLUE_SATURATION)) | (violet & (saturation >= VIOLET_SATURATION))
    ink |= red & (saturation >= RED_SATURATION) & (value >= RED_VALUE)
    ink |= (hue >= DARK_RED_HUE) & (saturation >= DARK_RED_SATURATION)
    blue = (hue >= FADED_BLUE_HUES[0]) & (hue < FADED_BLUE_HUES[1])
    faded = (blue | red) & (saturation >= FADED_SATURATION)
    flags: NDArray[np.uint8] = green * DARK | ink * INK | faded * FADED
    return flags


def find_artefacts(flags: NDArray[np.uint8], *, mpp: tuple[float, float]) -> NDArray[np.bool_]:
    """Find ink, grey and black, with their rims.

    Parameters
    ----------
    flags : (H, W) uint8
        By `classify`.
    mpp : (x, y), µm per px

    Returns
    -------
    artefacts : (H, W) bool
        What lies beyond the picture's edge counts for nothing; a pixel depends on `artefact_reach`
        rows above and below it.
    """
    artefacts: NDArray[np.bool_] = (flags & DARK) != 0
    ink, fleck = (flags & INK) != 0, (flags & FLECK) != 0
    if ink.any() and (ink := _open(ink)).any():
        artefacts |= ((flags & FADED) != 0) & widen(ink, _reach(FADING_UM, mpp))
        artefacts |= ink
    if not artefacts.any():
        return artefacts
    # What is thin and not dark has no rim to speak of: often the colour fringe of tissue's edge.
    return artefacts | widen(_open(artefacts) | fleck, _rim(mpp))


def artefact_reach(mpp: tuple[float, float]) -> int:
    """Rows above and below a pixel on which `find_artefacts` depends."""
    return 2 * OPENING_PX + _reach(FADING_UM, mpp)[0] + 2 * OPENING_PX + _rim(mpp)[0]


def _rim(mpp: tuple[float, float]) -> tuple[int, int]:
    down, across = _reach(RIM_UM, mpp)
    return max(RIM_PX, down), max(RIM_PX, across)


def _open(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Leave out what is thinner than three pixels."""
    reach = (OPENING_PX, OPENING_PX)
    return widen(~widen(~mask, reach), reach)


def _reach(length_um: float, mpp: tuple[float, float]) -> tuple[int, int]:
    return math.ceil(length_um / mpp[1]), math.ceil(length_um / mpp[0])


def widen(mask: NDArray[np.bool_], reach: tuple[int, int]) -> NDArray[np.bool_]:
    """Dilate by a rectangle; what lies beyond the picture's edge counts for nothing.

    Parameters
    ----------
    mask : (H, W) bool
    reach : px along (rows, columns), to either side

    Returns
    -------
    wider : (H, W) bool, always a new array
    """
    wider = np.empty_like(mask)
    step = max(2 * reach[0], BAND_PX // max(1, mask.shape[1]), 1)
    for top in range(0, len(mask), step):  # in the processor's cache
        first, last = max(0, top - reach[0]), min(len(mask), top + step + reach[0])
        band = _widen_band(mask[first:last], reach)
        wider[top : top + step] = band[top - first : top - first + step]
    return wider


def _widen_band(mask: NDArray[np.bool_], reach: tuple[int, int]) -> NDArray[np.bool_]:
    wider = mask.copy()
    for axis, pixels in enumerate(reach):
        wider = np.swapaxes(wider, 0, axis)
        left = min(pixels, len(wider) - 1)
        step = 1  # doubled: `wider` reaches 1, 3, 7, ... pixels
        while left > 0:
            by = min(step, left)
            before = wider.copy()
            wider[by:] |= before[:-by]
            wider[:-by] |= before[by:]
            left -= by
            step = 2 * step
        wider = np.swapaxes(wider, 0, axis)
    return wider
