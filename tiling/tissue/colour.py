"""Hue, saturation and value of a smoothed picture, rows at a time.

The blur gives the same bits as `scipy.ndimage.gaussian_filter` on float32 (sums in float64, along
columns, then along rows) without importing scipy, which takes longer than blurring a slide's
picture.
"""

import numpy as np
from numpy.typing import NDArray

White = tuple[float, float, float]

BAND_PX = 2**16  # about; a band's working arrays stay in the processor's cache
TRUNCATE = 4.0  # the Gaussian is cut off at so many sigma
WHITE: White = (1.0, 1.0, 1.0)


def smooth_rows(
    rgb: NDArray[np.uint8], rows: slice, *, sigma: float, white: White = WHITE
) -> NDArray[np.float32]:
    """Blur adjacent rows of a picture.

    Parameters
    ----------
    rgb : (H, W, 3) uint8
        The whole picture.
    rows : slice
    sigma : px
        Of the Gaussian, cut off at four sigma; beyond the edge the nearest pixel counts.
    white : R, G, B, above 0, at most 1
        Each channel is divided by it.

    Returns
    -------
    blurred : (3, rows, W) float32
        1 where a channel is that of `white`.
    """
    reach = _reach(sigma)
    at = np.arange(rows.start - reach, rows.stop + reach)
    inside = at[0] >= 0 and at[-1] < len(rgb)
    source = rgb[at[0] : at[-1] + 1] if inside else rgb[at.clip(0, len(rgb) - 1)]
    return _blur(source[None], sigma, white)[:, 0]


def sample_saturation(
    rgb: NDArray[np.uint8], step: int, *, sigma: float, white: White = WHITE
) -> NDArray[np.float32]:
    """Compute the saturation of every `step`-th row and column of a blurred picture."""
    reach = _reach(sigma)
    rows = np.arange(0, len(rgb), step)
    n_rows = max(1, BAND_PX // max(1, rgb.shape[1] * (2 * reach + 1)))
    found = []
    for first in range(0, len(rows), n_rows):
        at = rows[first : first + n_rows, None] + np.arange(-reach, reach + 1)
        blurred = _blur(rgb[at.clip(0, len(rgb) - 1)], sigma, white)
        found.append(saturation_and_value(blurred[:, :, 0, ::step])[0])
    return np.concatenate(found)


def bands(shape: tuple[int, ...], *, least: int = 1) -> list[slice]:
    """Divide the rows of a picture (H, W) into bands of about `BAND_PX`, of at least some rows."""
    height, width = shape[:2]
    step = max(least, BAND_PX // max(1, width), 1)
    return [slice(top, min(top + step, height)) for top in range(0, height, step)]


def _reach(sigma: float) -> int:
    return int(TRUNCATE * sigma + 0.5)


def _kernel(sigma: float) -> list[float]:
    """Weights of the Gaussian, from the centre outwards."""
    reach = _reach(sigma)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 / (sigma * sigma) * offsets**2)
    weights /= weights.sum()
    outwards: list[float] = weights[reach:].tolist()
    return outwards


def _blur(rgb: NDArray[np.uint8], sigma: float, white: White) -> NDArray[np.float32]:
    """Blur pieces of a picture; (n, rows + 2 * reach, W, 3) -> (3, n, rows, W)."""
    reach, kernel = _reach(sigma), _kernel(sigma)
    n_pieces, n_rows, width = rgb.shape[0], rgb.shape[1] - 2 * reach, rgb.shape[2]
    blurred = np.empty((3, n_pieces, n_rows, width), np.float32)
    padded = np.empty((n_pieces, n_rows, width + 2 * reach))
    for channel, out in enumerate(blurred):
        values = rgb[..., channel].astype(np.float32)
        values /= np.float32(white[channel]) * 255
        down = _correlate(values.astype(np.float64), kernel, axis=1)
        # Rounded to float32 between the axes.
        padded[..., reach : reach + width] = down.astype(np.float32)
        padded[..., :reach] = padded[..., reach : reach + 1]
        padded[..., reach + width :] = padded[..., reach + width - 1 : reach + width]
        out[...] = _correlate(padded, kernel, axis=2)
    return blurred


def _correlate(values: NDArray[np.float64], kernel: list[float], axis: int) -> NDArray[np.float64]:
    """Correlate with a symmetric kernel along an axis of three, without its ends."""
    reach = len(kernel) - 1
    n_out = values.shape[axis] - 2 * reach

    def shifted(by: int) -> NDArray[np.float64]:
        part = slice(reach + by, reach + by + n_out)
        return values[:, part] if axis == 1 else values[:, :, part]

    total = shifted(0) * kernel[0]
    pair = np.empty_like(total)
    for by in range(reach, 0, -1):  # from outside, the order in which scipy adds
        np.add(shifted(-by), shifted(by), out=pair)
        pair *= kernel[by]
        total += pair
    return total


def saturation_and_value(
    rgb: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compute the saturation and value of colours.

    Parameters
    ----------
    rgb : (3, ...) float32
        1 is white; what is whiter in each channel has no saturation.

    Returns
    -------
    saturation, value : (...) float32 in [0, 1]
        The saturation of black is 0.

    References
    ----------
    .. [1] A. R. Smith, "Color gamut transform pairs", SIGGRAPH 1978.
    """
    value, least = rgb.max(axis=0), rgb.min(axis=0)
    saturation = np.zeros_like(value)
    np.divide(value - least, value, out=saturation, where=(value > 0) & (least < 1))
    return saturation, np.minimum(value, 1, out=value)


def hue_of(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute the hue of colours; (3, ...) -> (...) in [0, 1], 0 where there is none."""
    red, green, blue = rgb
    value = rgb.max(axis=0)
    spread = value - rgb.min(axis=0)
    is_coloured = spread > 0
    some = np.where(is_coloured, spread, np.float32(1))
    sector = np.where(
        blue == value,
        4 + (red - green) / some,
        np.where(green == value, 2 + (blue - red) / some, (green - blue) / some),
    )
    sector /= 6
    sector += sector < 0  # as the remainder by 1, which takes ten times as long
    hue: NDArray[np.float32] = np.where(is_coloured, sector, np.float32(0))
    return hue
