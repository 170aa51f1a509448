"""OME-XML: which image of an OME-TIFF is stored in which of the file's directories.

Only what locates pixels and gives their size is read: dimensions, channels, physical pixel size,
and the map from planes to TIFF directories (IFDs).

References
----------
.. [1] Open Microscopy Environment, "OME-TIFF specification",
   https://docs.openmicroscopy.org/ome-model/latest/ome-tiff/specification.html
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from tiling.readers.common import MICRONS_PER_INCH, parse_number

# OME's UnitsLength symbols that a microscope may use, as microns.
MICRONS_BY_UNIT = {
    "pm": 1e-6, "nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0,
    "mm": 1e3, "cm": 1e4, "m": 1e6, "in": MICRONS_PER_INCH, "inch": MICRONS_PER_INCH,
}  # fmt: skip

Plane = tuple[int, int, int]  # index of channel, focal plane (Z) and time point
MOST_PLANES = 100_000  # of one image; more is a damaged number


@dataclass(frozen=True)
class OmeChannel:
    """One channel; a channel of an RGB image holds all three samples."""

    name: str
    rgb: tuple[int, int, int] | None  # colour it is displayed in, if stated
    is_fluorescent: bool  # has an emission wavelength or a fluorophore


@dataclass(frozen=True)
class OmeImage:
    """One Image of the OME-XML."""

    name: str
    size: tuple[int, int]  # (width, height), px
    size_c: int  # samples of all channels
    n_z: int
    n_t: int
    order: str  # of the planes, fastest first, e.g. "CZT"
    channels: tuple[OmeChannel, ...]
    um_per_px: tuple[float | None, float | None]  # (x, y)
    blocks: tuple["TiffData", ...]

    def n_channels(self, samples_per_pixel: int) -> int:
        """How many planes hold the channels of one focal plane."""
        if samples_per_pixel > 1 and self.size_c in (samples_per_pixel, samples_per_pixel - 1):
            return 1  # an alpha sample may not be counted
        return max(1, self.size_c // samples_per_pixel)

    def find_pages(self, samples_per_pixel: int, n_pages: int) -> dict[Plane, int]:
        """Find the directory of each plane that this file holds.

        Parameters
        ----------
        samples_per_pixel : int
            Of the image's first page.
        n_pages : int
            Directories of the file.

        Returns
        -------
        pages : dict
            Index of the directory by plane. Planes stored in other files are absent.
        """
        sizes = {"C": self.n_channels(samples_per_pixel), "Z": self.n_z, "T": self.n_t}
        planes = list(_iterate_planes(self.order, sizes))
        pages: dict[Plane, int] = {}
        for block in self.blocks:
            first = _rank(self.order, sizes, block.first)
            count = len(planes) - first if block.n_planes is None else block.n_planes
            for step, plane in enumerate(planes[first : first + count]):
                pages.pop(plane, None)  # the last statement wins
                if block.is_here and block.ifd + step < n_pages:
                    pages[plane] = block.ifd + step
        return pages


@dataclass(frozen=True)
class TiffData:
    """A run of planes in consecutive directories."""

    ifd: int
    first: Plane
    n_planes: int | None  # None: all that follow
    is_here: bool  # in this file, not in another one


def parse_ome(xml: str | None, file_name: str) -> tuple[OmeImage, ...]:
    """Read the images of an OME-XML text; empty where it is none, or holds none.

    Parameters
    ----------
    xml : str
    file_name : str
        Name of the file that the text was found in.
    """
    try:
        root = fromstring(xml or "")
    except (ParseError, DefusedXmlException, ValueError):
        return ()
    images = []
    for node in root.iter():
        if _tag(node) == "Image":
            pixels = next((child for child in node if _tag(child) == "Pixels"), None)
            if pixels is not None:
                found = _parse_image(node, pixels, root.get("UUID", ""), file_name)
                images += [found] if found is not None else []
    return tuple(images)


def _parse_image(image: Any, pixels: Any, uuid: str, file_name: str) -> OmeImage | None:
    width, height, size_c, n_z, n_t = (_whole(pixels.get(f"Size{axis}"), 1) for axis in "XYCZT")
    if min(width, height, size_c, n_z, n_t) < 1 or size_c * n_z * n_t > MOST_PLANES:
        return None
    order = pixels.get("DimensionOrder", "XYCZT")[2:]
    blocks = [_parse_block(n, uuid, file_name) for n in pixels if _tag(n) == "TiffData"]
    return OmeImage(
        name=image.get("Name", ""),
        size=(width, height),
        size_c=size_c,
        n_z=n_z,
        n_t=n_t,
        order=order if sorted(order) == ["C", "T", "Z"] else "CZT",
        channels=tuple(_parse_channel(node) for node in pixels if _tag(node) == "Channel"),
        um_per_px=(_length(pixels, "X"), _length(pixels, "Y")),
        blocks=tuple(blocks) or (TiffData(0, (0, 0, 0), None, True),),
    )


def _parse_block(node: Any, uuid: str, file_name: str) -> TiffData:
    first = tuple(_whole(node.get(f"First{axis}"), 0) for axis in "CZT")
    n_planes = node.get("PlaneCount", node.get("NumPlanes"))
    default = 1 if node.get("IFD") is not None else None
    stored = next((child for child in node if _tag(child) == "UUID"), None)
    is_here = (
        stored is None
        or (bool(uuid) and (stored.text or "").strip() == uuid)
        or stored.get("FileName", file_name) == file_name
    )
    return TiffData(
        ifd=_whole(node.get("IFD"), 0),
        first=(first[0], first[1], first[2]),
        n_planes=_whole(n_planes, 1) or default if n_planes else default,
        is_here=is_here,
    )


def _parse_channel(node: Any) -> OmeChannel:
    colour = parse_number(node.get("Color"))
    rgb = None
    if colour is not None and abs(colour) < 2**32:
        packed = int(colour) % 2**32  # signed 32-bit, RGBA
        rgb = (packed >> 24, packed >> 16 & 255, packed >> 8 & 255)
    fluorescent = any(node.get(key) for key in ("EmissionWavelength", "Fluor"))
    return OmeChannel(node.get("Name", ""), rgb, fluorescent)


def _length(pixels: Any, axis: str) -> float | None:
    value = parse_number(pixels.get(f"PhysicalSize{axis}"))
    unit = MICRONS_BY_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    return None if value is None or unit is None else value * unit


def _iterate_planes(order: str, sizes: dict[str, int]) -> Iterator[Plane]:
    slowest_first = [range(sizes[axis]) for axis in reversed(order)]
    for place in product(*slowest_first):
        at = dict(zip(reversed(order), place, strict=True))
        yield at["C"], at["Z"], at["T"]


def _rank(order: str, sizes: dict[str, int], plane: Plane) -> int:
    at = dict(zip("CZT", plane, strict=True))
    rank, step = 0, 1
    for axis in order:
        rank += at[axis] * step
        step *= sizes[axis]
    return rank


def _whole(text: str | None, default: int) -> int:
    try:
        return default if text is None else max(0, int(text))
    except ValueError:
        return default


def _tag(node: Any) -> str:
    return str(node.tag).rpartition("}")[2]
