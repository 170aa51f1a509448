"""Heatmaps on disk: OME-TIFF of float32 values, readable by QuPath, napari and Fiji.

The file stores values, not colours; NaN is a pixel that was not scored. It is a pyramid (SubIFDs)
of deflate tiles, and its physical pixel size aligns it with the slide. Equal heatmaps give equal
bytes: no date, path, random id or software version is written.
"""

from pathlib import Path
from xml.sax.saxutils import quoteattr

import defusedxml.ElementTree
import numpy as np
import tifffile
from numpy.typing import NDArray

from tiling.files import open_file, write_aside
from wsi_pipeline.contracts import Heatmap
from wsi_pipeline.errors import HeatmapError

_TILE_PX = 256
_SMALLEST_LEVEL_PX = 256  # the pyramid ends at the first level within this side
_OME = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
_NAMESPACE = "wsi-pipeline/heatmap/1"
_BAND_ROWS = 256  # of a level, made at a time: their sums take more room than the values
_BIG_BYTES = 2**31  # above, a file may outgrow classic TIFF's 4 GiB of offsets


def write_heatmap(
    path: Path, heatmap: Heatmap, *, mpp: tuple[float, float], name: str, channel: str = "score"
) -> None:
    """Write a heatmap as pyramidal OME-TIFF atomically.

    Parameters
    ----------
    path : Path
        By convention ends with ``.ome.tif``.
    heatmap : Heatmap
    mpp : (x, y), µm per level-0 px
        Resolution of the slide; the pixel of the file is ``pixel_l0 * mpp``.
    name : str
        Name of the image inside the file, for example the slide's id.
    channel : str
        What the values are.

    Raises
    ------
    HeatmapError
        If the values are not (H, W) float32 or the resolution is not positive.
    """
    values = heatmap.values
    if values.ndim != 2 or values.dtype != np.float32 or values.size == 0:
        raise HeatmapError(f"expected (H, W) float32 values, got {values.shape} {values.dtype}")
    if not (0 < mpp[0] < float("inf") and 0 < mpp[1] < float("inf")):
        raise HeatmapError(f"microns per pixel must be positive, got {mpp}")
    pixel_um = (heatmap.pixel_l0[0] * mpp[0], heatmap.pixel_l0[1] * mpp[1])
    levels = build_pyramid(values)
    with (
        write_aside(path) as scratch,
        tifffile.TiffWriter(scratch, bigtiff=values.nbytes > _BIG_BYTES, ome=False) as tiff,
    ):
        for index, level in enumerate(levels):
            scale = 2**index
            tiff.write(
                level,
                photometric="minisblack",
                tile=(_TILE_PX, _TILE_PX),
                compression="zlib",
                resolution=(1e4 / (pixel_um[0] * scale), 1e4 / (pixel_um[1] * scale)),
                resolutionunit="CENTIMETER",
                subifds=len(levels) - 1 if index == 0 else None,
                subfiletype=0 if index == 0 else 1,
                description=_describe(heatmap, pixel_um, name, channel) if index == 0 else None,
                metadata=None,
                software=False,
            )


def build_pyramid(values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Halve an image until it is small.

    Returns
    -------
    levels : list of (H_i, W_i) float32
        `values` first; each next pixel is the mean of the up to four scored pixels below it, NaN
        where none is scored. At least two levels, unless `values` is a single pixel.
    """
    levels = [values]
    while max(levels[-1].shape) > (1 if len(levels) == 1 else _SMALLEST_LEVEL_PX):
        levels.append(_halve(levels[-1]))
    return levels


def _halve(values: NDArray[np.float32]) -> NDArray[np.float32]:
    half = np.empty([-(-side // 2) for side in values.shape], np.float32)
    for start in range(0, len(half), _BAND_ROWS):
        rows = slice(start, start + _BAND_ROWS)
        half[rows] = _average_blocks(values[2 * rows.start : 2 * rows.stop])
    return half


def _average_blocks(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean of the scored pixels of each block of 2 x 2."""
    height, width = (-(-side // 2) for side in values.shape)
    total = np.zeros((height, width))
    count = np.zeros((height, width), np.uint8)
    for row in (0, 1):
        for column in (0, 1):
            part = values[row::2, column::2]
            scored = ~np.isnan(part)
            inside = (slice(part.shape[0]), slice(part.shape[1]))
            total[inside] += np.where(scored, part, 0)
            count[inside] += scored
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that is wanted
        mean: NDArray[np.float64] = total / count
    return mean


def _describe(heatmap: Heatmap, pixel_um: tuple[float, float], name: str, channel: str) -> bytes:
    """Write the OME-XML that goes into the file; ASCII, as TIFF wants it."""
    height, width = heatmap.values.shape
    facts = {
        "pixel_l0_x": heatmap.pixel_l0[0],
        "pixel_l0_y": heatmap.pixel_l0[1],
        "slide_width_l0": heatmap.slide_size[0],
        "slide_height_l0": heatmap.slide_size[1],
    }
    pairs = "".join(f'<M K="{key}">{int(value)}</M>' for key, value in facts.items())
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f'<OME xmlns="{_OME}" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        f'xsi:schemaLocation="{_OME} {_OME}/ome.xsd">'
        f'<Image ID="Image:0" Name={quoteattr(name)}>'
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="float" BigEndian="false" '
        f'SizeX="{width}" SizeY="{height}" SizeC="1" SizeZ="1" SizeT="1" '
        f'PhysicalSizeX="{pixel_um[0]!r}" PhysicalSizeXUnit="µm" '
        f'PhysicalSizeY="{pixel_um[1]!r}" PhysicalSizeYUnit="µm">'
        f'<Channel ID="Channel:0:0" Name={quoteattr(channel)} SamplesPerPixel="1"><LightPath/>'
        "</Channel>"
        '<TiffData IFD="0" PlaneCount="1"/></Pixels>'
        '<AnnotationRef ID="Annotation:0"/></Image>'
        "<StructuredAnnotations>"
        f'<MapAnnotation ID="Annotation:0" Namespace="{_NAMESPACE}"><Value>{pairs}</Value>'
        "</MapAnnotation></StructuredAnnotations></OME>"
    )
    return xml.encode("ascii", "xmlcharrefreplace")


def read_heatmap(path: Path) -> Heatmap:
    """Read a heatmap that `write_heatmap` wrote.

    Raises
    ------
    HeatmapError
        If the file is missing, damaged or not written by this program.
    """
    try:
        with open_file(path, "rb") as file, tifffile.TiffFile(file) as tiff:
            facts = _read_facts(tiff.pages.first.description)
            values: NDArray[np.float32] = tiff.pages.first.asarray()
    except FileNotFoundError as error:
        raise HeatmapError(
            f"{path.name}: no such heatmap; make it with wsi-pipeline heatmap"
        ) from error
    except (
        tifffile.TiffFileError,
        defusedxml.ElementTree.ParseError,
        KeyError,
        ValueError,
        RuntimeError,
    ) as error:
        raise HeatmapError(
            f"{path.name}: not a heatmap of wsi-pipeline, or damaged ({error}); rebuild it with "
            "wsi-pipeline heatmap"
        ) from error
    return Heatmap(
        values=values,
        pixel_l0=(facts["pixel_l0_x"], facts["pixel_l0_y"]),
        slide_size=(facts["slide_width_l0"], facts["slide_height_l0"]),
    )


def _read_facts(description: str) -> dict[str, int]:
    root = defusedxml.ElementTree.fromstring(description)
    for annotation in root.iter(f"{{{_OME}}}MapAnnotation"):
        if annotation.get("Namespace") == _NAMESPACE:
            pairs = annotation.iter(f"{{{_OME}}}M")
            return {pair.get("K") or "": int(pair.text or "") for pair in pairs}
    raise ValueError("its OME-XML has no heatmap annotation")
