"""What every reader does the same way: white for nothing, a check of the request, a sane mpp."""

import math

import numpy as np
from numpy.typing import NDArray

from tiling.errors import SlideError

# A glass slide is 75 mm long: at 50 µm per pixel it is 1500 px. Coarser figures in a file are a
# printer's resolution (72 dpi is 353 µm per pixel), not a microscope's.
COARSEST_MPP = 50.0


def parse_number(text: str | None) -> float | None:
    """Read a number that a file's metadata tells as text; None where it is none."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def usable_mpp(x: float | None, y: float | None) -> tuple[float, float] | None:
    """Keep a file's resolution if it can be one of a microscope; one axis stands in for both.

    Examples
    --------
    >>> usable_mpp(0.25, None)
    (0.25, 0.25)
    >>> usable_mpp(0.0, 0.25) is None
    True
    """
    x = y if x is None else x
    y = x if y is None else y
    if x is None or y is None:
        return None
    if not all(math.isfinite(value) and 0 < value <= COARSEST_MPP for value in (x, y)):
        return None
    return x, y


def check_region(file_name: str, level: int, n_levels: int, size: tuple[int, int]) -> None:
    """Refuse a region that no slide could have: OpenSlide alone gives white for a wrong level.

    Raises
    ------
    SlideError
        If there is no such level or the size is negative.
    """
    if not 0 <= level < n_levels:
        raise SlideError(f"{file_name}: there is no level {level}; the slide has {n_levels}")
    if min(size) < 0:
        raise SlideError(f"{file_name}: a region cannot have the size {tuple(size)}")


def composite_over_white(
    rgba: NDArray[np.uint8], *, premultiplied: bool = False
) -> NDArray[np.uint8]:
    """Lay a picture with alpha on white, exactly where it is opaque.

    Parameters
    ----------
    rgba : (H, W, 4) uint8
    premultiplied : bool
        Whether the colours already are multiplied with alpha.

    Returns
    -------
    rgb : (H, W, 3) uint8
    """
    rgb = np.array(rgba[..., :3], order="C")  # a copy even where the slice is contiguous already
    alpha = rgba[..., 3]
    if alpha.size and alpha.min() < 255:
        rows, columns = np.nonzero(alpha < 255)
        part = rgba[rows, columns].astype(np.uint16)
        colour, opacity = part[:, :3], part[:, 3:]
        shown = colour if premultiplied else (colour * opacity + 127) // 255
        rgb[rows, columns] = np.minimum(shown + (255 - opacity), 255)
    return rgb
