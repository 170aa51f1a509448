"""Where the pixels of a TIFF lie: its pyramid's levels, each a lattice of file tiles or strips."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile

from tiling.errors import SlideError

LARGEST_SEGMENT_BYTES = 512 * 2**20  # decoded; a file of one huge compressed strip cannot be cut
STRIP_BYTES = 2**18  # uncompressed strips are read in pieces of about this size
MOST_IMAGES = 1000  # in one file; slides have a dozen


@dataclass(frozen=True)
class TiffLevel:
    """One image of the pyramid, a lattice of segments: file tiles, strips, or pieces of strips."""

    page: Any  # tifffile.TiffPage
    size: tuple[int, int]  # (width, height), px
    segment: tuple[int, int]  # (width, height), px
    offsets: tuple[int, ...]  # byte of each segment, planes one after another
    counts: tuple[int, ...]  # bytes of each segment; 0: not stored, white
    is_raw: bool  # bytes are pixels, rows of the whole width

    @property
    def lattice(self) -> tuple[int, int]:
        """Segments (across, down) of one plane."""
        return math.ceil(self.size[0] / self.segment[0]), math.ceil(self.size[1] / self.segment[1])

    @property
    def n_planes(self) -> int:
        """1 where the samples of a pixel lie together, else one plane per sample."""
        return self.page.samplesperpixel if self.page.planarconfig == 2 else 1


def list_pages(file_name: str, pages: Any) -> list[Any]:
    """Every image of a file, or every image inside another one.

    Parameters
    ----------
    pages : tifffile.TiffPages

    Raises
    ------
    SlideError
        If there are more than any slide has: they would be read for hours.
    """
    listed = [page.aspage() for page in itertools.islice(pages, MOST_IMAGES + 1)]
    if len(listed) > MOST_IMAGES:
        raise SlideError(
            f"{file_name}: more than {MOST_IMAGES} images in its TIFF directory, more than any "
            "slide has; copy the file again from its source"
        )
    return listed


def pyramid_pages(file_name: str, tif: Any) -> list[Any]:
    """The finest image and its smaller copies, the finest first.

    Raises
    ------
    SlideError
        If the file has more images than any slide.
    """
    pages = list_pages(file_name, tif.pages)
    base = max(pages, key=lambda page: page.imagewidth * page.imagelength)  # the first of equals
    inside = list_pages(file_name, base.pages) if base.subifds else []
    copies = inside + [page for page in pages if page is not base and _is_copy(page, base)]
    levels = [base]
    for page in sorted(copies, key=lambda page: -page.imagewidth):
        if page.imagewidth < levels[-1].imagewidth and _same_aspect(page, base):
            levels.append(page)
    return levels


def _is_copy(page: Any, base: Any) -> bool:
    # Told by the writer (NewSubfileType bit 0), else by an exact power of two and the same layout.
    if page.is_reduced:
        return True
    power = round(math.log2(base.imagewidth / page.imagewidth))
    halved = all(
        abs(side / 2**power - copy) <= 1
        for side, copy in (
            (base.imagewidth, page.imagewidth),
            (base.imagelength, page.imagelength),
        )
    )
    return bool(power > 0 and halved and page.is_tiled == base.is_tiled)


def _same_aspect(page: Any, base: Any) -> bool:
    # A label or macro picture has another shape than the slide; rounding may cost a level 1 px.
    downsample = base.imagewidth / page.imagewidth
    difference = abs(base.imagelength / downsample - page.imagelength)
    return bool(difference <= 1 + page.imagelength / 100)


def check_pixels(file_name: str, page: Any) -> None:
    """Refuse what is neither 8-bit RGB nor grey.

    Raises
    ------
    SlideError
        With the name of what the file has.
    """
    photometric = tifffile.PHOTOMETRIC
    if page.bitspersample != 8 or page.dtype != np.uint8:
        what = "bits per sample" if page.sampleformat in (1, 2) else "bits of another kind"
        raise SlideError(
            f"{file_name}: {page.bitspersample} {what} where 8-bit RGB is needed; "
            "convert it, for example with QuPath or libvips"
        )
    kinds = {photometric.RGB: (3, 4), photometric.YCBCR: (3,), photometric.MINISBLACK: (1,)}
    is_jpeg = page.compression in (tifffile.COMPRESSION.JPEG, tifffile.COMPRESSION.OJPEG)
    if page.samplesperpixel not in kinds.get(page.photometric, ()) or page.imagedepth != 1:
        raise SlideError(
            f"{file_name}: {page.samplesperpixel} samples per pixel of kind "
            f"{_name(page.photometric)} where 8-bit RGB or grey is needed; convert it to RGB"
        )
    if page.compression not in tifffile.TIFF.DECOMPRESSORS or page.planarconfig not in (1, 2):
        raise SlideError(
            f"{file_name}: compression {_name(page.compression)} with planar configuration "
            f"{page.planarconfig} is not read; convert it, for example with QuPath or libvips"
        )
    if page.photometric == photometric.YCBCR and not is_jpeg:
        raise SlideError(
            f"{file_name}: YCbCr with {_name(page.compression)} compression is not read; "
            "convert it to RGB"
        )


def _name(value: Any) -> str:
    return str(getattr(value, "name", value))


def lay_out(file_name: str, page: Any) -> TiffLevel:
    """Find where a page's pixels lie.

    Raises
    ------
    SlideError
        If a segment is too large to be decoded at once, or the directory is not complete.
    """
    width, height = page.imagewidth, page.imagelength
    offsets, counts = tuple(page.dataoffsets), tuple(page.databytecounts)
    if page.is_tiled:
        segment = (page.tilewidth, page.tilelength)
    else:
        segment = (width, min(page.rowsperstrip, height))
        cut = _cut_strips(page, segment[1])
        if cut is not None:
            return cut
    decoded = segment[0] * segment[1] * page.samplesperpixel
    if decoded > LARGEST_SEGMENT_BYTES:
        raise SlideError(
            f"{file_name}: stored as compressed strips of {segment[0]} x {segment[1]} px, too "
            "large to read in parts; convert it to a tiled TIFF"
        )
    level = TiffLevel(page, (width, height), segment, offsets, counts, is_raw=False)
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
    tops = range(0, height, rows)
    return TiffLevel(
        page,
        (width, height),
        (width, rows),
        offsets=tuple(page.dataoffsets[0] + top * row_bytes for top in tops),
        counts=tuple(min(rows, height - top) * row_bytes for top in tops),
        is_raw=True,
    )
