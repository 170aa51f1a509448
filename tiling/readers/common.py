"""What all readers share: white for nothing, a check of the request, a plausible resolution."""

import math

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import SAME_MPP
from tiling.errors import SlideError

# A glass slide is 75 mm long: at 50 µm per pixel it is 1500 px. Coarser figures in a file are a
# printer's resolution (72 dpi is 353 µm per pixel), not a microscope's.
COARSEST_MPP = 50.0
FINEST_MPP = 0.05  # a 100x oil objective and a camera of 5 µm pixels; light resolves 0.2 µm
MICRONS_PER_INCH = 25_400.0
# Resolutions that programs write for screens and printers, dots per inch.
PRINTER_DPI = (72, 96, 100, 120, 144, 150, 180, 200, 240, 300, 350, 360, 400, 600, 1200, 2400, 4800)
SAME_DPI = 0.005  # relative; dots per centimetre are rounded
USUAL_MPP = 10.0  # µm per px times the objective power: 20x is about 0.5, 40x about 0.25
FAR_FROM_USUAL = 1.6  # scanners lie within 0.7 and 1.1 of the usual


def parse_number(text: str | None) -> float | None:
    """Read a number that a file's metadata states as text; None where it is none."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def positive_mpp(x: float | None, y: float | None) -> tuple[float, float] | None:
    """Return a resolution if it is a positive number; one axis is used for both if needed.

    Examples
    --------
    >>> positive_mpp(0.25, None)
    (0.25, 0.25)
    >>> positive_mpp(0.0, 0.25) is None
    True
    """
    x = y if x is None else x
    y = x if y is None else y
    if x is None or y is None or not all(math.isfinite(v) and v > 0 for v in (x, y)):
        return None
    return x, y


def usable_mpp(stated: tuple[float, float] | None) -> tuple[float, float] | None:
    """Keep a stated resolution if it can be one of a microscope.

    Examples
    --------
    >>> usable_mpp((0.25, 0.25))
    (0.25, 0.25)
    >>> usable_mpp((353.0, 353.0)) is None
    True
    """
    return stated if stated is not None and max(stated) <= COARSEST_MPP else None


def printer_dpi(mpp: tuple[float, float] | None) -> int | None:
    """Dots per inch of a screen or printer, where a stated resolution is just that.

    Examples
    --------
    >>> printer_dpi((352.78, 352.78))
    72
    >>> printer_dpi((0.25, 0.25)) is None
    True
    """
    if mpp is None or not is_square(mpp):
        return None
    dpi = MICRONS_PER_INCH / mpp[0]
    return next((known for known in PRINTER_DPI if abs(dpi / known - 1) <= SAME_DPI), None)


def is_square(mpp: tuple[float, float]) -> bool:
    """Whether x and y resolution are the same but for rounding.

    Examples
    --------
    >>> is_square((28.969, 28.968)), is_square((0.25, 0.5))
    (True, False)
    """
    return abs(mpp[0] - mpp[1]) <= SAME_MPP * max(mpp)


def note_stated_mpp(stated: tuple[float, float] | None) -> tuple[str, ...]:
    """Warn of a resolution in a file that is a screen's or printer's."""
    dpi = printer_dpi(stated)
    if dpi is None:
        return ()
    if usable_mpp(stated) is None:
        return (
            f"the file's resolution of {dpi} dpi is that of a screen or printer, and is not used",
        )
    mpp = MICRONS_PER_INCH / dpi
    return (
        f"the file's resolution, {mpp:.4g} µm per pixel, is exactly {dpi} dpi: probably a "
        "printer's, not the microscope's; check it, and give the true one in the manifest's mpp "
        "column",
    )


def note_mpp(mpp: tuple[float, float], objective_power: float | None) -> tuple[str, ...]:
    """Warn of a resolution that is hardly a microscope's, or contradicts the objective.

    Parameters
    ----------
    mpp : (x, y), µm per level-0 px
        As it will be used.
    objective_power : float, optional
        As the file states it.
    """
    if min(mpp) < FINEST_MPP:
        return (
            f"{min(mpp):.4g} µm per pixel is finer than any light microscope's; check it, and give "
            "the true one in the manifest's mpp column",
        )
    if not objective_power or objective_power <= 0:
        return ()
    usual = USUAL_MPP / objective_power
    ratio = max(mpp[0] / usual, usual / mpp[0])
    if ratio <= FAR_FROM_USUAL:
        return ()
    return (
        f"{mpp[0]:.4g} µm per pixel is far from the {usual:.4g} that is usual for the objective "
        f"power {objective_power:g} of the file; check it, and give the true one in the manifest's "
        "mpp column",
    )


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
    """Compose a picture with alpha on white; exact where it is opaque.

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
