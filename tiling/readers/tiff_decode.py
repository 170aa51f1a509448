"""From the bytes of one file tile to its red, green and blue.

JPEG, the usual case, is decoded straight into the caller's memory by libjpeg-turbo, which lets
other threads run meanwhile. Its colours follow the TIFF's photometric tag, never the markers in the
JPEG: scanners write RGB without its marker. Everything else is decoded by tifffile.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from tiling.readers.common import composite_over_white
from tiling.readers.tiff_levels import TiffLevel

Pixels = NDArray[np.uint8]
# Bytes of each plane of a segment, its index, memory that may be used -> (rows, columns, 3)
Decoder = Callable[[list[bytes], list[int], Pixels], Pixels]

WHITE = 255
ADOBE_SEGMENT = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"  # the transform follows
START_OF_IMAGE, START_OF_SCAN = b"\xff\xd8", b"\xda"
SCAN_MARKER = b"\xff" + START_OF_SCAN
COLOURS = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)


def make_decoder(level: TiffLevel) -> Decoder:
    """Choose how the file tiles of a level are decoded.

    Returns
    -------
    decode : function
        Raises whatever its codec raises where the bytes are damaged.
    """
    page = level.page
    is_jpeg = page.compression == tifffile.COMPRESSION.JPEG and page.planarconfig == 1
    if is_jpeg and page.samplesperpixel == 3 and page.is_tiled and page.photometric in COLOURS:
        return _jpeg_decoder(page)
    if not level.is_raw:
        for one in level.pages:
            one.decode  # noqa: B018  tifffile builds its decoder once; not by many threads at a time

    def decode(data: list[bytes], indices: list[int], buffer: Pixels) -> Pixels:
        planes = [
            _decode_plane(level, part, index) for part, index in zip(data, indices, strict=True)
        ]
        return _to_rgb(planes[0] if len(planes) == 1 else np.concatenate(planes, axis=-1), page)

    return decode


def _jpeg_decoder(page: Any) -> Decoder:
    tables = (page.jpegtables or b"")[2:-2]
    insert = ADOBE_SEGMENT + bytes([page.photometric == tifffile.PHOTOMETRIC.YCBCR]) + tables
    last = (b"\0", b"")  # a header as stored and as rewritten: most tiles have the same

    def decode(data: list[bytes], indices: list[int], buffer: Pixels) -> Pixels:
        nonlocal last
        tile = data[0]
        stored, rewritten = last
        if not (tile.startswith(stored) and tile.startswith(SCAN_MARKER, len(stored))):
            rewritten, scan_start = rewrite_jpeg_header(tile, insert)
            stored = tile[:scan_start]
            last = stored, rewritten
        whole = b"".join((rewritten, memoryview(tile)[len(stored) :]))
        # Strict, as OpenSlide is: imagecodecs passes over what libjpeg warns of, bad Huffman codes
        # and data that end too soon.
        pixels = simplejpeg.decode_jpeg(whole, "RGB", buffer=buffer)
        if pixels.shape != buffer.shape:
            raise ValueError(f"a JPEG of {pixels.shape[1]} x {pixels.shape[0]} px")
        return buffer

    return decode


def rewrite_jpeg_header(data: bytes, insert: bytes) -> tuple[bytes, int]:
    """Put segments into a JPEG's head, in place of those that speak of its colours.

    libjpeg skips bytes between segments with a warning, and OpenSlide takes that for an error:
    each segment has to begin where the one before ends.

    Returns
    -------
    header : bytes
        Goes in place of what is before the scan.
    scan_start : int
        Byte of `data` at which the scan begins.

    Raises
    ------
    ValueError
        If the header is damaged, or its JFIF of no known version.
    """
    place, kept = 2, [START_OF_IMAGE, insert]
    while data[:2] == START_OF_IMAGE:
        marker, kind = data[place : place + 1], data[place + 1 : place + 2]
        if marker != b"\xff" or kind in (b"", b"\x00", b"\xff"):
            break
        if kind == START_OF_SCAN:
            return b"".join(kept), place
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if kind == b"\xe0" and data[place + 4 : place + 9] == b"JFIF\0" and data[place + 9] != 1:
            raise ValueError(f"a JFIF of version {data[place + 9]}")
        if kind not in (b"\xe0", b"\xee"):  # JFIF, Adobe
            kept.append(data[place:end])
        place = end
    raise ValueError("the JPEG's header is damaged")


def _decode_plane(layout: TiffLevel, data: bytes, index: int) -> NDArray[np.uint8]:
    """Decode one segment of one plane: (rows, columns, samples)."""
    page = layout.page
    if len(layout.pages) > 1:  # one plane each
        across, down = layout.lattice
        plane, index = divmod(index, across * down)
        page = layout.pages[plane]
    if layout.is_raw:
        return np.frombuffer(data, np.uint8).reshape(-1, layout.size[0], page.samplesperpixel)
    if not data:  # a plane that is not stored, although others are
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
