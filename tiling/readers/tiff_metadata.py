"""How a TIFF says its resolution: OME-XML, ImageJ, Aperio's description, the resolution tags.

Each place is asked in that order, the most deliberate first. No other metadata of a file is read.
"""

import re
from typing import Any

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from tiling.readers.common import parse_number, usable_mpp

# OME's UnitsLength symbols that a microscope may use, as microns.
MICRONS_BY_UNIT = {
    "pm": 1e-6, "nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0,
    "mm": 1e3, "cm": 1e4, "m": 1e6, "in": 25_400.0, "inch": 25_400.0,
}  # fmt: skip
INCH, CENTIMETRE = 2, 3  # TIFF 6.0, ResolutionUnit


def read_mpp(tif: Any, page: Any) -> tuple[float, float] | None:
    """Find microns per pixel.

    Parameters
    ----------
    tif : tifffile.TiffFile
    page : tifffile.TiffPage
        The finest level.

    Returns
    -------
    mpp : (x, y) or None
        None where the file does not say, or says nonsense.
    """
    return (
        (_ome_mpp(tif.ome_metadata) if tif.is_ome else None)
        or (_imagej_mpp(tif.imagej_metadata, page) if tif.is_imagej else None)
        or _aperio_mpp(page.description)
        or _tag_mpp(page)
    )


def _ome_mpp(xml: str | None) -> tuple[float, float] | None:
    try:
        root = fromstring(xml or "")
    except (ParseError, DefusedXmlException, ValueError):
        return None
    # The first image is the slide; labels and macros come after it.
    pixels = next((node for node in root.iter() if node.tag.rpartition("}")[2] == "Pixels"), None)
    if pixels is None:
        return None
    return usable_mpp(*(_ome_length(pixels.attrib, axis) for axis in "XY"))


def _ome_length(attributes: dict[str, str], axis: str) -> float | None:
    value = parse_number(attributes.get(f"PhysicalSize{axis}"))
    unit = MICRONS_BY_UNIT.get(attributes.get(f"PhysicalSize{axis}Unit", "µm"))
    return None if value is None or unit is None else value * unit


def _imagej_mpp(metadata: dict[str, Any] | None, page: Any) -> tuple[float, float] | None:
    # ImageJ keeps the unit in its own text and pixels per unit in the resolution tags.
    unit = str((metadata or {}).get("unit", "")).replace("\\u00B5", "µ").strip()
    microns = MICRONS_BY_UNIT.get(unit)
    return None if microns is None else _per_pixel(page, microns)


def _aperio_mpp(description: str) -> tuple[float, float] | None:
    found = re.search(r"\|\s*MPP\s*=\s*([0-9.eE+-]+)", description or "")
    value = parse_number(found.group(1)) if found else None
    return usable_mpp(value, value)


def _tag_mpp(page: Any) -> tuple[float, float] | None:
    unit = page.tags.valueof("ResolutionUnit", default=INCH)
    microns = {INCH: 25_400.0, CENTIMETRE: 10_000.0}.get(int(unit))
    return None if microns is None else _per_pixel(page, microns)


def _per_pixel(page: Any, microns: float) -> tuple[float, float] | None:
    return usable_mpp(*(_ratio(page.tags.valueof(f"{axis}Resolution"), microns) for axis in "XY"))


def _ratio(resolution: Any, microns: float) -> float | None:
    # Pixels per unit, as numerator and denominator.
    if not isinstance(resolution, tuple) or len(resolution) != 2 or not all(resolution):
        return None
    pixels, units = resolution
    return float(microns * units / pixels)
