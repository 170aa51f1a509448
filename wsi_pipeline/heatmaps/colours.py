"""The colour scale of heatmaps and the font of their pictures, without importing matplotlib."""

import functools
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# ColorBrewer's RdYlBu from its blue end; suitable for colour-blind readers. C. A. Brewer,
# "ColorBrewer 2.0", https://colorbrewer2.org
_ANCHORS = np.array(
    [
        (49, 54, 149), (69, 117, 180), (116, 173, 209), (171, 217, 233), (224, 243, 248),
        (255, 255, 191), (254, 224, 144), (253, 174, 97), (244, 109, 67), (215, 48, 39),
        (165, 0, 38),
    ]
)  # fmt: skip
N_COLOURS = 256


def colour_of(values: ArrayLike, limits: tuple[float, float]) -> NDArray[np.float64]:
    """Colour values from blue (low) to red (high), as matplotlib's ``RdYlBu_r`` does.

    Parameters
    ----------
    values : (n,), no NaN
        Those beyond the limits get the colours of the ends.
    limits : (low, high)

    Returns
    -------
    colours : (n, 3) in [0, 1]
    """
    low, high = limits
    share = (np.asarray(values, np.float64) - low) / (high - low)
    colours: NDArray[np.float64] = _table()[
        (share * N_COLOURS).clip(0, N_COLOURS - 1).astype(np.int64)
    ]
    return colours


@functools.cache
def _table() -> NDArray[np.float64]:
    at = np.linspace(0, len(_ANCHORS) - 1, N_COLOURS)
    channels = [np.interp(at, np.arange(len(_ANCHORS)), channel) for channel in _ANCHORS.T]
    return np.stack(channels, axis=1) / 255


@functools.cache
def find_font(size: int) -> Font:
    """Load a font of some height in pixels: DejaVu Sans, which has the letters of most scripts."""
    package = find_spec("matplotlib")  # installed with it
    for folder in (package and package.submodule_search_locations) or ():
        path = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)
