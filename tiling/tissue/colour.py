"""Hue, saturation and value of a smoothed picture, band by band: memory for the result only."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

BAND_PX = 2**18  # about; a band's working arrays stay in the processor's cache


def smooth_hsv(
    rgb: NDArray[np.uint8], *, sigma: float, white: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Blur a picture and give the blurred colours' hue, saturation and value.

    Parameters
    ----------
    rgb : (H, W, 3) uint8
    sigma : px
        Of the Gaussian, cut off at four sigma; beyond the edge the nearest pixel counts.
    white : R, G, B, above 0, at most 1
        What counts as white: each channel is divided by it. What is whiter in each has no
        saturation.

    Returns
    -------
    hue, saturation, value : (H, W) float32 in [0, 1]
        Hue is 0 where there is none, saturation where the value is 0.

    References
    ----------
    .. [1] A. R. Smith, "Color gamut transform pairs", SIGGRAPH 1978.
    """
    height, width = rgb.shape[:2]
    hue, saturation, value = (np.empty((height, width), np.float32) for _ in range(3))
    rim = int(4 * sigma + 0.5)
    step = max(1, BAND_PX // max(1, width))
    full = np.array(white, np.float32).reshape(3, 1, 1) * 255
    for top in range(0, height, step):
        bottom = min(top + step, height)
        first, last = max(0, top - rim), min(height, bottom + rim)
        # (rows, W, 3) -> (3, rows, W): each channel in one piece
        band = np.ascontiguousarray(np.moveaxis(rgb[first:last], -1, 0), np.float32)
        band /= full
        band = ndimage.gaussian_filter(band, (0, sigma, sigma), mode="nearest")
        rows = slice(top, bottom)
        _fill_hsv(band[:, top - first : bottom - first], hue[rows], saturation[rows], value[rows])
    return hue, saturation, value


def _fill_hsv(
    rgb: NDArray[np.float32],
    hue: NDArray[np.float32],
    saturation: NDArray[np.float32],
    value: NDArray[np.float32],
) -> None:
    red, green, blue = rgb
    np.maximum(np.maximum(red, green), blue, out=value)
    least = np.minimum(np.minimum(red, green), blue)
    spread = value - least
    saturation[...] = 0
    np.divide(spread, value, out=saturation, where=(value > 0) & (least < 1))
    some = np.where(spread > 0, spread, np.float32(1))
    sector = np.where(
        blue == value,
        4 + (red - green) / some,
        np.where(green == value, 2 + (blue - red) / some, (green - blue) / some),
    )
    sector /= 6
    sector += sector < 0  # as the remainder by 1, which takes ten times as long
    hue[...] = np.where(spread > 0, sector, 0)
    np.minimum(value, 1, out=value)
