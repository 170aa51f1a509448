"""The resolution that a TIFF page states: ImageJ's text, Aperio's description, resolution tags.

Each place is tried in that order, the most deliberate first. OME-XML, which goes before them, is
read by `tiling.readers.tiff_ome`. No other metadata of a file is read.
"""

import re
from typing import Any

from tiling.readers.common import MICRONS_PER_INCH, parse_number, positive_mpp
from tiling.readers.tiff_ome import MICRONS_BY_UNIT

INCH, CENTIMETRE = 2, 3  # TIFF 6.0, ResolutionUnit


def read_mpp(tif: Any, page: Any) -> tuple[float, float] | None:
    """Find the microns per pixel that are stated for one page.

    Parameters
    ----------
    tif : tifffile.TiffFile
    page : tifffile.TiffPage

    Returns
    -------
    mpp : (x, y) or None
        Positive and finite, but it may be a printer's; None where the file states none.
    """
    return (
        (_imagej_mpp(tif.imagej_metadata, page) if tif.is_imagej else None)
        or _aperio_mpp(page.description)
        or _tag_mpp(page)
    )


def _imagej_mpp(metadata: dict[str, Any] | None, page: Any) -> tuple[float, float] | None:
    # ImageJ keeps the unit in its own text and pixels per unit in the resolution tags.
    unit = str((metadata or {}).get("unit", "")).replace("\\u00B5", "µ").strip()
    microns = MICRONS_BY_UNIT.get(unit)
    return None if microns is None else _per_pixel(page, microns)


def _aperio_mpp(description: str) -> tuple[float, float] | None:
    found = re.search(r"\|\s*MPP\s*=\s*([0-9.eE+-]+)", description or "")
    value = parse_number(found.group(1)) if found else None
    return positive_mpp(value, value)


def _tag_mpp(page: Any) -> tuple[float, float] | None:
    unit = page.tags.valueof("ResolutionUnit", default=INCH)
    microns = {INCH: MICRONS_PER_INCH, CENTIMETRE: 10_000.0}.get(int(unit))
    return None if microns is None else _per_pixel(page, microns)


def _per_pixel(page: Any, microns: float) -> tuple[float, float] | None:
    return positive_mpp(*(_ratio(page.tags.valueof(f"{axis}Resolution"), microns) for axis in "XY"))


def _ratio(resolution: Any, microns: float) -> float | None:
    # Pixels per unit, as numerator and denominator.
    if not isinstance(resolution, tuple) or len(resolution) != 2 or not all(resolution):
        return None
    pixels, units = resolution
    return float(microns * units / pixels)
