"""From the bytes of one file tile to its red, green and blue.

JPEG, the usual case, is decoded straight into the caller's memory by libjpeg-turbo, which lets
other threads run meanwhile. Its colours follow the TIFF's photometric tag, never the markers in the
JPEG: scanners write RGB without the marker that would say so. All else goes through tifffile.
"""

from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from tiling.readers.common import composite_over_white
from tiling.readers.tiff_levels import TiffLevel

Pixels = NDArray[np.uint8]
# Bytes of each plane of a segment, its index, memory that may be used -> (rows, columns, 3)
Decoder = Callable[[list[bytes], list[int], Pixels], Pixels]

WHITE = 255
COLOUR_SPACES = {tifffile.PHOTOMETRIC.RGB: "RGB", tifffile.PHOTOMETRIC.YCBCR: "YCBCR"}


def make_decoder(level: TiffLevel) -> Decoder:
    """Choose how the file tiles of a level are decoded.

    Returns
    -------
    decode : function
        Raises whatever its codec raises where the bytes are damaged.
    """
    page = level.page
    is_jpeg = page.compression == tifffile.COMPRESSION.JPEG and page.planarconfig == 1
    if (
        is_jpeg
        and page.samplesperpixel == 3
        and page.is_tiled
        and page.photometric in COLOUR_SPACES
    ):
        return _jpeg_decoder(page)
    if not level.is_raw:
        page.decode  # noqa: B018  tifffile builds its decoder once; not by many threads at a time

    def decode(data: list[bytes], indices: list[int], buffer: Pixels) -> Pixels:
        planes = [
            _decode_plane(level, part, index) for part, index in zip(data, indices, strict=True)
        ]
        return _to_rgb(planes[0] if len(planes) == 1 else np.concatenate(planes, axis=-1), page)

    return decode


def _jpeg_decoder(page: Any) -> Decoder:
    tables, space = page.jpegtables, COLOUR_SPACES[page.photometric]

    def decode(data: list[bytes], indices: list[int], buffer: Pixels) -> Pixels:
        # A JPEG of another size than its tile does not fit the buffer, and is an error.
        pixels: Pixels = imagecodecs.jpeg8_decode(
            data[0], tables=tables, colorspace=space, outcolorspace="RGB", out=buffer
        )
        return pixels

    return decode


def _decode_plane(layout: TiffLevel, data: bytes, index: int) -> NDArray[np.uint8]:
    """Decode one segment of one plane: (rows, columns, samples)."""
    page = layout.page
    if layout.is_raw:
        return np.frombuffer(data, np.uint8).reshape(-1, layout.size[0], page.samplesperpixel)
    if not data:  # a plane that is not stored, beside others that are
        across, down = layout.segment
        return np.full((down, across, 1), WHITE, np.uint8)
    decoded = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)[0]
    if decoded is None:
        raise ValueError("no pixels came out")
    pixels: NDArray[np.uint8] = np.asarray(decoded)[0]  # (depth, rows, columns, samples)
    return pixels


def _to_rgb(samples: NDArray[np.uint8], page: Any) -> NDArray[np.uint8]:
    if samples.shape[-1] == 1:
        return np.repeat(samples, 3, axis=-1)
    if samples.shape[-1] == 4:
        kinds = page.extrasamples
        if kinds and kinds[0] in (1, 2):  # associated, unassociated alpha; 0 is no alpha at all
            return composite_over_white(samples, premultiplied=kinds[0] == 1)
    return np.ascontiguousarray(samples[..., :3])
