"""Where the pixels of a TIFF lie: its pyramid's levels, each a lattice of file tiles or strips."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from tiling.errors import SlideError, UnsupportedSlideError, UnsupportedTilesError
from tiling.files import open_file

LARGEST_SEGMENT_BYTES = 512 * 2**20  # decoded; a file of one huge compressed strip cannot be cut
STRIP_BYTES = 2**18  # uncompressed strips are read in pieces of about this size


@dataclass(frozen=True)
class TiffLevel:
    """One level of the pyramid, a lattice of segments: file tiles, strips, or pieces of strips."""

    pages: tuple[Any, ...]  # tifffile.TiffPage: one, or three that hold red, green and blue
    size: tuple[int, int]  # (width, height), px
    segment: tuple[int, int]  # (width, height), px
    offsets: NDArray[np.uint64]  # byte of each segment, planes one after another
    counts: NDArray[np.uint64]  # bytes of each segment; 0: not stored, white
    is_raw: bool  # bytes are pixels, rows of the whole width

    @property
    def page(self) -> Any:
        """The first page."""
        return self.pages[0]

    @property
    def lattice(self) -> tuple[int, int]:
        """Segments (across, down) of one plane."""
        return math.ceil(self.size[0] / self.segment[0]), math.ceil(self.size[1] / self.segment[1])

    @property
    def n_planes(self) -> int:
        """1 where the samples of a pixel lie together, else one plane per sample."""
        if len(self.pages) > 1:
            return len(self.pages)
        return self.page.samplesperpixel if self.page.planarconfig == 2 else 1

    @property
    def n_samples(self) -> int:
        """Samples of a pixel, in all pages."""
        return sum(page.samplesperpixel for page in self.pages)


def check_pixels(file_name: str, page: Any) -> None:
    """Refuse what is neither 8-bit RGB nor grey.

    Raises
    ------
    UnsupportedSlideError
        With the name of what the file has.
    """
    photometric = tifffile.PHOTOMETRIC
    if page.bitspersample != 8 or page.dtype != np.uint8:
        raise UnsupportedSlideError(
            f"{file_name}: {describe_samples(page)} where 8-bit RGB is needed; convert it, for "
            "example with QuPath or libvips"
        )
    kinds = {photometric.RGB: (3, 4), photometric.YCBCR: (3,), photometric.MINISBLACK: (1,)}
    is_jpeg = page.compression in (tifffile.COMPRESSION.JPEG, tifffile.COMPRESSION.OJPEG)
    if page.samplesperpixel not in kinds.get(page.photometric, ()) or page.imagedepth != 1:
        raise UnsupportedSlideError(
            f"{file_name}: {page.samplesperpixel} samples per pixel of kind "
            f"{_name(page.photometric)} where 8-bit RGB or grey is needed; convert it to RGB"
        )
    if not _has_decoder(page) or page.planarconfig not in (1, 2):
        raise UnsupportedSlideError(
            f"{file_name}: compression {_name(page.compression)} with planar configuration "
            f"{page.planarconfig} is not read; convert it, for example with QuPath or libvips"
        )
    if page.photometric == photometric.YCBCR and not is_jpeg:
        raise UnsupportedSlideError(
            f"{file_name}: YCbCr with {_name(page.compression)} compression is not read; "
            "convert it to RGB"
        )


_KINDS = {1: "", 2: "signed ", 3: "floating-point ", 4: "", 5: "complex ", 6: "complex "}


def describe_samples(page: Any) -> str:
    """Name the numbers of a page, for example ``16 bits per sample``."""
    kind = _KINDS.get(int(page.sampleformat or 1), "unknown ")
    if kind:
        return f"{kind}samples of {page.bitspersample} bits"
    return f"{page.bitspersample} bit{'s' * (page.bitspersample != 1)} per sample"


def check_converted(file_name: str, page: Any) -> None:
    """Refuse samples that OpenSlide would convert to wrong colours, or fail on when read.

    Raises
    ------
    UnsupportedSlideError
    """
    kind = _KINDS.get(int(page.sampleformat or 1), "unknown ")
    # Deep colours fill their range; deep grey is often 12 bits of 16, and would be nearly black.
    is_deep_grey = page.bitspersample == 16 and page.samplesperpixel == 1
    if kind or is_deep_grey or page.bitspersample not in (8, 16):
        raise UnsupportedSlideError(
            f"{file_name}: {describe_samples(page)} where 8-bit RGB is needed; convert it, for "
            "example with QuPath or libvips"
        )


def _has_decoder(page: Any) -> bool:
    try:
        tifffile.TIFF.DECOMPRESSORS[page.compression]
    except KeyError:  # unknown, or its codec is not installed
        return False
    return True


JPEG_HEAD_BYTES = 2**16
JPEG_LS = 0xF7  # the marker SOF55 of ISO/IEC 14495-1
START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {JPEG_LS}


def check_jpeg(path: Path, level: TiffLevel) -> None:
    """Refuse tiles whose JPEG is of a kind that no reader here decodes.

    Raises
    ------
    UnsupportedTilesError
        If the first stored tile is JPEG-LS, or JPEG of more than 8 bits.
    """
    if level.page.compression != tifffile.COMPRESSION.JPEG or level.is_raw:
        return
    stored = level.offsets[(level.offsets > 0) & (level.counts > 0)]
    if not len(stored):
        return
    with open_file(path, "rb") as file:
        file.seek(int(stored[0]))
        kind, bits = _jpeg_frame(file.read(JPEG_HEAD_BYTES))
    if kind == JPEG_LS or (kind is not None and bits != 8):
        name = "JPEG-LS" if kind == JPEG_LS else f"JPEG of {bits} bits"
        raise UnsupportedTilesError(
            f"{path.name}: its tiles are {name}, which is not read; convert it to 8-bit JPEG, for "
            "example with libvips"
        )


def _jpeg_frame(data: bytes) -> tuple[int | None, int]:
    """Find the kind and the bits per sample in a JPEG's frame header; (None, 0) without one."""
    place = 2
    while data[place : place + 1] == b"\xff" and place + 5 <= len(data):
        kind = data[place + 1]
        if kind in START_OF_FRAME:
            return kind, data[place + 4]
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None, 0


def _name(value: Any) -> str:
    return str(getattr(value, "name", value))


def describe_level(file_name: str, pages: tuple[Any, ...]) -> TiffLevel:
    """Find where the pixels of a level lie.

    Parameters
    ----------
    pages : (1,) or (3,) of tifffile.TiffPage
        Three hold red, green and blue.

    Raises
    ------
    UnsupportedSlideError
        If a segment is too large to be decoded at once, or three planes are stored differently.
    SlideError
        If the directory is not complete.
    """
    planes = [_lay_out_page(file_name, page) for page in pages]
    first = planes[0]
    if any(
        (p.size, p.segment, p.is_raw) != (first.size, first.segment, first.is_raw) for p in planes
    ):
        raise UnsupportedSlideError(
            f"{file_name}: its red, green and blue planes are stored in different ways; convert it "
            "to RGB"
        )
    return replace(
        first,
        pages=pages,
        offsets=np.concatenate([plane.offsets for plane in planes]),
        counts=np.concatenate([plane.counts for plane in planes]),
    )


def _lay_out_page(file_name: str, page: Any) -> TiffLevel:
    width, height = page.imagewidth, page.imagelength
    offsets = np.array(page.dataoffsets, np.uint64)
    counts = np.array(page.databytecounts, np.uint64)
    if page.is_tiled:
        segment = (page.tilewidth, page.tilelength)
    else:
        segment = (width, min(page.rowsperstrip, height))
        cut = _cut_strips(page, segment[1])
        if cut is not None:
            return cut
    decoded = segment[0] * segment[1] * page.samplesperpixel
    if decoded > LARGEST_SEGMENT_BYTES:
        raise UnsupportedSlideError(
            f"{file_name}: stored as compressed strips of {segment[0]} x {segment[1]} px, too "
            "large to read in parts; convert it to a tiled TIFF"
        )
    level = TiffLevel((page,), (width, height), segment, offsets, counts, is_raw=False)
    expected = math.prod(level.lattice) * level.n_planes
    if not expected == len(offsets) == len(counts):
        raise SlideError(
            f"{file_name}: its directory lists {len(offsets)} file tiles, {expected} are needed"
        )
    return level


def _cut_strips(page: Any, rows_per_strip: int) -> TiffLevel | None:
    """Cut uncompressed strips into pieces of a few rows, so that a huge strip is not read whole."""
    width, height = page.imagewidth, page.imagelength
    row_bytes = width * page.samplesperpixel
    plain = page.compression == 1 and page.planarconfig == 1 and page.fillorder == 1
    if not plain or not page.is_contiguous or rows_per_strip * row_bytes <= STRIP_BYTES:
        return None
    rows = max(1, STRIP_BYTES // row_bytes)
    tops = np.arange(0, height, rows)
    return TiffLevel(
        (page,),
        (width, height),
        (width, rows),
        offsets=np.uint64(page.dataoffsets[0]) + (tops * row_bytes).astype(np.uint64),
        counts=(np.minimum(rows, height - tops) * row_bytes).astype(np.uint64),
        is_raw=True,
    )
