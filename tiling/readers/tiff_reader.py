"""8-bit RGB TIFF through tifffile: striped files, OME-TIFF, BigTIFF that OpenSlide does not take.

Reads RGB, RGBA (composited over white), YCbCr JPEG, red, green and blue planes, and grey (shown as
equal red, green and blue), tiled or in strips, pyramids in SubIFDs or in pages. Which image of the
file is read is decided in `tiling.readers.tiff_images`. Anything else is refused with its name.
Memory stays bounded: only the file tiles, or strips, that touch a region are decoded, and a few are
kept for the next region.
"""

import logging
from pathlib import Path

import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray

from tiling.errors import SeveralImagesError, SlideError, UnsupportedSlideError
from tiling.readers.base import Reader
from tiling.readers.tiff_images import choose_image
from tiling.readers.tiff_levels import (
    TiffLevel,
    check_converted,
    check_jpeg,
    check_pixels,
    describe_level,
)
from tiling.readers.tiff_pixels import TiffPixels
from tiling.readers.tiff_structure import find_cut, is_tiff

log = logging.getLogger(__name__)

PLAIN_TIFF_VENDOR = "generic-tiff"  # OpenSlide's word for a TIFF of no known maker


class TiffReader(Reader):
    """A slide read by tifffile.

    Parameters
    ----------
    path : Path
        A TIFF file, one whole slide in it.
    cache_bytes : int, optional
        The most that is kept of decoded file tiles; 0: nothing. None: what all open slides share.

    Raises
    ------
    UnsupportedSlideError
        If the file is sound but not one 8-bit RGB or grey picture.
    SlideError
        If the file is no TIFF, damaged or cut off.
    """

    title = "TIFF"
    suffixes = frozenset({".btf", ".qptiff", ".tf2", ".tf8", ".tif", ".tiff"})

    def __init__(self, path: Path, *, cache_bytes: int | None = None) -> None:
        try:
            self._open(path, cache_bytes)
        except SlideError as error:
            cut = find_cut(path)
            if cut is None:
                raise
            raise SlideError(
                f"{path.name}: the file is cut off: {cut}; copy it again from its source"
            ) from error

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Whether a file is a TIFF that OpenSlide does not know, or of which it shows less.

        OpenSlide takes OME-TIFF, and TIFF of several images, for plain TIFF of the first image: it
        sees neither their resolution and pyramid nor which image is the slide.
        """
        if not is_tiff(path):
            return False
        vendor = openslide.OpenSlide.detect_format(path)
        if vendor != PLAIN_TIFF_VENDOR:
            return vendor is None
        try:
            with openslide.OpenSlide(path) as shown:
                size, n_levels = shown.dimensions, shown.level_count
        except openslide.OpenSlideError:
            return False  # `RefusedTiffReader` reads it, or explains why not
        return _shows_more(path, size, n_levels)

    def _open(self, path: Path, cache_bytes: int | None) -> None:
        name = path.name
        try:
            tif = tifffile.TiffFile(path)
        except Exception as error:  # damaged headers fail in as many ways as there are bytes
            raise SlideError(
                f"{name}: not a TIFF that can be read: {error}; copy it again from its source"
            ) from error
        with tif:
            try:
                levels = self._describe_image(path, tif)
                self._pixels = TiffPixels(path, levels, cache_bytes=cache_bytes)
            except SlideError:
                raise
            except Exception as error:  # so do damaged directories
                raise SlideError(
                    f"{name}: its TIFF directory is damaged: {error}; copy it again from its source"
                ) from error

    def _describe_image(self, path: Path, tif: tifffile.TiffFile) -> tuple[TiffLevel, ...]:
        image = choose_image(path.name, tif)
        for page in (page for pages in image.levels for page in pages):
            check_pixels(path.name, page)
        levels = tuple(describe_level(path.name, pages) for pages in image.levels)
        check_jpeg(path, levels[0])
        end = np.uint64(tif.filehandle.size)
        self._n_beyond_end = sum(_count_beyond(level, end) for level in levels)
        self._is_plain = not image.is_ome and not image.notes and len(image.levels[0]) == 1
        sizes = tuple(level.size for level in levels)
        width, height = sizes[0]
        self._describe(
            path,
            vendor="ome-tiff" if image.is_ome else PLAIN_TIFF_VENDOR,
            level_sizes=sizes,
            # The mean of both axes, as OpenSlide has it.
            level_downsamples=tuple((width / w + height / h) / 2 for w, h in sizes),
            stated_mpp=image.mpp,
            notes=image.notes + self._note_cut(sum(len(level.offsets) for level in levels)),
        )
        return levels

    def _note_cut(self, n_tiles: int) -> tuple[str, ...]:
        if not self.n_beyond_end:
            return ()
        return (
            f"the file is cut off: {self.n_beyond_end} of its {n_tiles} file tiles lie beyond its "
            "end; copy it again from its source",
        )

    @property
    def is_plain(self) -> bool:
        """Whether the file holds one picture, which was not chosen among others."""
        return self._is_plain

    @property
    def n_beyond_end(self) -> int:
        """Segments that lie beyond the end of the file: it was cut off."""
        return self._n_beyond_end

    def _read_region(
        self, location: tuple[int, int], level: int, size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        # Between whole pixels of a level OpenSlide blends the four neighbours, and so does this:
        # equal to within rounding, and bit for bit at whole pixels.
        self._pixels.check_open()
        downsample = self.level_downsamples[level]
        (x, share_x), (y, share_y) = (level_position(value, downsample) for value in location)
        width, height = size
        wide, high = width + (share_x > 0), height + (share_y > 0)
        region = self._pixels.read_window(level, x, y, wide, high)
        return _blend(region, share_x, share_y) if share_x or share_y else region

    def _read_into(self, out: NDArray[np.uint8], location: tuple[int, int], level: int) -> None:
        self._pixels.check_open()
        downsample = self.level_downsamples[level]
        (x, share_x), (y, share_y) = (level_position(value, downsample) for value in location)
        if share_x or share_y:
            super()._read_into(out, location, level)
        else:
            self._pixels.read_window(level, x, y, out.shape[1], out.shape[0], out=out)

    def close(self) -> None:
        """Release the file."""
        self._pixels.close()


def _count_beyond(level: TiffLevel, end: np.uint64) -> int:
    ends = level.offsets + level.counts  # wraps only where one of them is beyond any file's end
    return int(np.sum((level.offsets > end) | (level.counts > end) | (ends > end)))


def _shows_more(path: Path, size: tuple[int, int], n_levels: int) -> bool:
    """Whether a plain TIFF has more to show than OpenSlide's size and levels of it."""
    try:
        slide = TiffReader(path)
    except SeveralImagesError:
        return True
    except UnsupportedSlideError:
        return not _is_converted(path, size)
    except SlideError as error:  # a damaged directory, of which OpenSlide reads what it can
        log.debug("%s; read by OpenSlide", error)
        return False
    with slide:
        return not slide.is_plain or slide.size != size or len(slide.level_sizes) > n_levels


def _is_converted(path: Path, size: tuple[int, int]) -> bool:
    """Whether OpenSlide shows the picture of a TIFF whose pixels are not read here, rightly."""
    try:
        with tifffile.TiffFile(path) as tif:
            image = choose_image(path.name, tif)
            check_converted(path.name, image.page)
    except SlideError:
        return False
    except Exception as error:  # also damaged
        log.debug("%s: %s", path.name, error)
        return True
    is_one = not image.is_ome and len(image.levels[0]) == 1
    return is_one and (image.page.imagewidth, image.page.imagelength) == size


def level_position(location: int, downsample: float) -> tuple[int, float]:
    """Split a position into whole pixels of the level and a share of the next one.

    As OpenSlide does it: positions left of or above the slide fall on whole pixels, others are kept
    to 65,536ths of a pixel.
    """
    if location < 0:
        return -int(-location / downsample), 0.0
    fixed = round(location / downsample * 65_536)
    return fixed >> 16, (fixed & 65_535) / 65_536


def _blend(region: NDArray[np.uint8], share_x: float, share_y: float) -> NDArray[np.uint8]:
    pixels = region.astype(np.float32)
    if share_x:
        pixels = pixels[:, :-1] * (1 - share_x) + pixels[:, 1:] * share_x
    if share_y:
        pixels = pixels[:-1] * (1 - share_y) + pixels[1:] * share_y
    return np.rint(pixels).astype(np.uint8)
