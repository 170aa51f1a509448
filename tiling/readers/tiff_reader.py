"""8-bit RGB TIFF through tifffile: striped files, OME-TIFF, BigTIFF that OpenSlide does not take.

Reads RGB, RGBA (composited over white), YCbCr JPEG, red, green and blue planes, and grey (shown as
equal red, green and blue), tiled or in strips, pyramids in SubIFDs or in pages. Which image of the
file is read is decided in `tiling.readers.tiff_images`. Anything else is refused with its name.
Memory stays bounded: only the file tiles, or strips, that touch a region are decoded, and a few are
kept for the next region.
"""

from pathlib import Path
from typing import Self

import numpy as np
import tifffile
from numpy.typing import NDArray

from tiling.errors import SlideError
from tiling.readers.common import check_region, usable_mpp
from tiling.readers.tiff_images import choose_image
from tiling.readers.tiff_levels import check_jpeg, check_pixels, lay_out
from tiling.readers.tiff_pixels import CACHE_BYTES, TiffPixels
from tiling.readers.tiff_structure import find_cut


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
    UnsupportedSlideError
        If the file is sound but not one 8-bit RGB or grey picture.
    SlideError
        If the file is no TIFF, damaged or cut off.
    """

    def __init__(self, path: Path, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._path = path
        try:
            self._open(cache_bytes)
        except SlideError as error:
            cut = find_cut(path)
            if cut is None:
                raise
            raise SlideError(
                f"{path.name}: the file is cut off: {cut}; copy it again from its source"
            ) from error

    def _open(self, cache_bytes: int) -> None:
        name = self._path.name
        try:
            tif = tifffile.TiffFile(self._path)
        except Exception as error:  # damaged headers fail in as many ways as there are bytes
            raise SlideError(
                f"{name}: not a TIFF that can be read: {error}; copy it again from its source"
            ) from error
        with tif:
            try:
                self._describe(tif)
                self._pixels = TiffPixels(self._path, self._levels, cache_bytes=cache_bytes)
            except SlideError:
                raise
            except Exception as error:  # so do damaged directories
                raise SlideError(
                    f"{name}: its TIFF directory is damaged: {error}; copy it again from its source"
                ) from error

    def _describe(self, tif: tifffile.TiffFile) -> None:
        image = choose_image(self._path.name, tif)
        for page in (page for pages in image.levels for page in pages):
            check_pixels(self._path.name, page)
        self._levels = tuple(lay_out(self._path.name, pages) for pages in image.levels)
        check_jpeg(self._path, self._levels[0])
        self._stated_mpp = image.mpp
        self._is_ome = image.is_ome
        self._file_bytes = int(tif.filehandle.size)
        self._is_plain = not image.is_ome and not image.notes and len(image.levels[0]) == 1
        self._notes = image.notes + self._note_cut()

    def _note_cut(self) -> tuple[str, ...]:
        if not self.n_beyond_end:
            return ()
        n_tiles = sum(len(level.offsets) for level in self._levels)
        return (
            f"the file is cut off: {self.n_beyond_end} of its {n_tiles} file tiles lie beyond its "
            "end; copy it again from its source",
        )

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
        """(x, y) µm per level-0 px, None where the file does not state it."""
        return usable_mpp(self._stated_mpp)

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
        """None: not stated by a TIFF."""
        return None

    @property
    def objective_power(self) -> float | None:
        """None: not stated by a TIFF."""
        return None

    @property
    def stated_mpp(self) -> tuple[float, float] | None:
        """(x, y) µm per level-0 px as the file states it, even if it cannot be a microscope's."""
        return self._stated_mpp

    @property
    def notes(self) -> tuple[str, ...]:
        """Which image of several is read, and what is missing of the file, one sentence each."""
        return self._notes

    @property
    def is_plain(self) -> bool:
        """Whether the file holds one picture, which was not chosen among others."""
        return self._is_plain

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
