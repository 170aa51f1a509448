"""The colour of bare glass on a bright-field slide, and how much it flickers.

A lamp, a mounting medium or a scanner tints glass. Saturation is measured against that tint, so
that warm glass is not tissue and pale tissue is not lost in it.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Colour = tuple[float, float, float]  # R, G, B, 0 to 1

WHITE: Colour = (1.0, 1.0, 1.0)
SAMPLE_PX = 2**16  # of the picture looked at, about
MIN_VALUE = 0.72  # of glass, 0 to 1
MAX_TINT = 0.12  # HSV saturation of tinted glass
MAX_PINK_TINT = 0.045  # a stronger pink is pale eosin
UNSEEN = 253  # 8-bit; whiter than this is what no camera saw: filled-in white
MIN_SHARE = 0.01  # of the sample; fewer pixels say nothing of the glass
MIN_SHARE_OF_BRIGHT = 0.2  # noise makes some of pale tissue colourless
NEAR = 0.04  # of the commonest brightness; glass is even
BINS = 64  # of brightness


def find_glass(rgb: NDArray[np.uint8]) -> Colour:
    """Estimate the colour of the glass: the commonest bright and nearly colourless one.

    Parameters
    ----------
    rgb : (H, W, 3) uint8

    Returns
    -------
    colour : R, G, B, 0 to 1
        White if less than a hundredth of the picture looks like glass.
    """
    sample = _sample(rgb).reshape(-1, 3)
    bright, plain = _find_bright(sample)
    seen = sample[plain]
    if len(seen) < max(1, MIN_SHARE * len(sample), MIN_SHARE_OF_BRIGHT * bright.sum()):
        return WHITE
    value = seen.max(axis=1) / 255
    counts, edges = np.histogram(value, BINS, (0, 1))
    commonest = edges[int(np.argmax(counts))] + 0.5 / BINS
    red, green, blue = np.median(seen[np.abs(value - commonest) <= NEAR], axis=0) / 255
    return float(red), float(green), float(blue)


def glass_flicker(rgb: NDArray[np.uint8], saturation: NDArray[np.float32], glass: Colour) -> float:
    """Measure the median saturation of glass against its own colour.

    Parameters
    ----------
    rgb : (H, W, 3) uint8
    saturation : (H, W) float32
        Against `glass`, of the smoothed picture.
    glass : R, G, B, 0 to 1

    Returns
    -------
    flicker : 0 to 1; 0 where there is no glass
    """
    sample = _sample(rgb)
    off = np.abs(sample / 255.0 - np.array(glass)).max(axis=2)
    found = _sample(saturation)[off <= NEAR]
    return float(np.median(found)) if len(found) >= max(1, MIN_SHARE * off.size) else 0.0


def _sample(picture: NDArray[Any]) -> NDArray[Any]:
    step = max(1, math.isqrt(picture.shape[0] * picture.shape[1] // SAMPLE_PX))
    return picture[::step, ::step]


def _find_bright(rgb: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Find what is bright and pale, and which of it may be glass."""
    red, green, blue = (rgb[:, i].astype(np.int16) for i in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    tint = value - np.minimum(np.minimum(red, green), blue)
    bright = (value >= MIN_VALUE * 255) & (tint <= MAX_TINT * value) & (value - tint < UNSEEN)
    # Pink and purple are the hues in which green is the least.
    pink = (green < red) & (green < blue) & (tint > MAX_PINK_TINT * value)
    return bright, bright & ~pink
