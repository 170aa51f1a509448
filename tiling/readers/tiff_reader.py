"""8-bit RGB TIFF through tifffile: striped files, OME-TIFF, BigTIFF that OpenSlide does not take.

Reads RGB, RGBA (laid over white), YCbCr JPEG and grey (shown as equal red, green and blue), tiled
or in strips, pyramids in SubIFDs or in pages. Anything else is refused with its name. Memory stays
bounded: only the file tiles, or strips, that touch a region are decoded, and a few are kept for the
next region.
"""

from pathlib import Path
from typing import Self

import numpy as np
import tifffile
from numpy.typing import NDArray

from tiling.errors import SlideError
from tiling.readers.common import check_region
from tiling.readers.tiff_levels import check_pixels, lay_out, pyramid_pages
from tiling.readers.tiff_metadata import read_mpp
from tiling.readers.tiff_pixels import CACHE_BYTES, TiffPixels


class TiffReader:
    """A slide read by tifffile; reads may come from many threads at once.

    Parameters
    ----------
    path : Path
        A TIFF file, one whole slide in it.
    cache_bytes : int
        The most that is kept of decoded file tiles.

    Raises
    ------
    SlideError
        If the file is no TIFF, or its pixels are not 8-bit RGB or grey.
    """

    def __init__(self, path: Path, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._path = path
        try:
            tif = tifffile.TiffFile(path)
        except Exception as error:  # damaged headers fail in as many ways as there are bytes
            raise SlideError(f"{path.name}: not a TIFF that can be read: {error}") from error
        with tif:
            try:
                self._describe(tif)
                self._pixels = TiffPixels(path, self._levels, cache_bytes=cache_bytes)
            except SlideError:
                raise
            except Exception as error:  # so do damaged directories
                raise SlideError(f"{path.name}: its TIFF directory is damaged: {error}") from error

    def _describe(self, tif: tifffile.TiffFile) -> None:
        pages = pyramid_pages(self._path.name, tif)
        for page in pages:
            check_pixels(self._path.name, page)
        self._levels = tuple(lay_out(self._path.name, page) for page in pages)
        self._mpp = read_mpp(tif, pages[0])
        self._is_ome = bool(tif.is_ome)
        self._file_bytes = int(tif.filehandle.size)

    @property
    def vendor(self) -> str:
        """``ome-tiff`` or, as OpenSlide says, ``generic-tiff``."""
        return "ome-tiff" if self._is_ome else "generic-tiff"

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), level-0 px."""
        return self._levels[0].size

    @property
    def mpp(self) -> tuple[float, float] | None:
        """(x, y) µm per level-0 px, None where the file does not say."""
        return self._mpp

    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each stored level, the finest first."""
        return tuple(level.size for level in self._levels)

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """Level-0 px per px of each stored level: the mean of both axes, as OpenSlide has it."""
        width, height = self.size
        return tuple((width / w + height / h) / 2 for w, h in self.level_sizes)

    @property
    def bounds(self) -> tuple[int, int, int, int] | None:
        """Not told by a TIFF."""
        return None

    @property
    def objective_power(self) -> float | None:
        """Not told by a TIFF."""
        return None

    @property
    def n_beyond_end(self) -> int:
        """Segments that lie beyond the end of the file: it was cut off."""
        end = self._file_bytes
        return sum(
            offset + count > end
            for level in self._levels
            for offset, count in zip(level.offsets, level.counts, strict=True)
        )

    def read_region(
        self, location: tuple[int, int], level: int, size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Read pixels; see `tiling.contracts.Slide.read_region`.

        Between whole pixels of a level OpenSlide blends the four neighbours, and so does this:
        equal to within rounding, and bit for bit at whole pixels.
        """
        check_region(self._path.name, level, len(self._levels), size)
        self._pixels.check_open()
        downsample = self.level_downsamples[level]
        (x, share_x), (y, share_y) = (level_position(value, downsample) for value in location)
        width, height = size
        wide, high = width + (share_x > 0), height + (share_y > 0)
        region = self._pixels.read_window(level, x, y, wide, high)
        return _blend(region, share_x, share_y) if share_x or share_y else region

    def close(self) -> None:
        """Release the file."""
        self._pixels.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


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
