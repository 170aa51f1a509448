"""Tiled TIFF and Aperio SVS several times faster than OpenSlide, and equal to it bit for bit.

OpenSlide spends more time on compositing tiles and on changing colour orders than on
decoding. This reader lets OpenSlide describe the slide, takes the file tiles' places from the TIFF
directory, decodes each tile once per pass and copies its pixels straight into the region.

It is used only for layouts that are known to come out equal (`find_fast_levels`), and only after
probes of each level agreed with OpenSlide on this very file. OpenSlide reads what is not known:
regions that lie between a level's pixels, levels with tiles that are not stored, tiles that do not
decode (it is the judge of what is unreadable). Until it is needed, OpenSlide's own file handle and
memory are released.
"""

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray

from tiling.errors import PassedOnError, SlideError, UnsupportedTilesError
from tiling.readers.base import Reader
from tiling.readers.common import check_region
from tiling.readers.openslide_reader import OpenSlideReader
from tiling.readers.tiff_images import list_pages
from tiling.readers.tiff_levels import TiffLevel, check_jpeg, check_pixels, describe_level
from tiling.readers.tiff_pixels import TiffPixels

log = logging.getLogger(__name__)

VENDORS = ("aperio", "generic-tiff")  # whose tiles OpenSlide places side by side unchanged
PROBE_PX = 64
PROBES_PER_LEVEL = 2
OPENSLIDE_BLOCK_PX = 4096  # OpenSlide reads larger regions in blocks, placed by whole level-0 px

_COMPRESSION = tifffile.COMPRESSION
COMPRESSIONS = (
    _COMPRESSION.NONE, _COMPRESSION.LZW, _COMPRESSION.JPEG, _COMPRESSION.ADOBE_DEFLATE,
    _COMPRESSION.DEFLATE, _COMPRESSION.APERIO_JP2000_RGB,
)  # fmt: skip


class TiledTiffReader(Reader):
    """A slide whose file tiles are decoded here.

    Parameters
    ----------
    path : Path
    cache_bytes : int, optional
        The most that is kept of decoded file tiles; 0: nothing. None: what all open slides share.

    Raises
    ------
    UnsupportedTilesError
        If neither this reader nor OpenSlide can decode the tiles.
    PassedOnError
        If the file's layout is none that is known to come out equal, or a probe did not.
    SlideError
        If OpenSlide cannot open the file.
    """

    title = "tiled TIFF"
    suffixes = frozenset({".svs", ".tif", ".tiff"})

    def __init__(self, path: Path, *, cache_bytes: int | None = None) -> None:
        self._oracle = oracle = OpenSlideReader(path)
        self._describe(
            path,
            vendor=oracle.vendor,
            level_sizes=oracle.level_sizes,
            level_downsamples=oracle.level_downsamples,
            stated_mpp=oracle.stated_mpp,
            bounds=oracle.bounds,
            objective_power=oracle.objective_power,
        )
        with ExitStack() as undo:
            undo.callback(self._oracle.close)
            try:
                self._prepare(cache_bytes)
            except UnsupportedTilesError:
                raise
            except SlideError as reason:
                raise PassedOnError(str(reason)) from reason
            undo.pop_all()

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Whether OpenSlide takes a file for a kind of TIFF whose tiles it lays side by side."""
        return openslide.OpenSlide.detect_format(path) in VENDORS

    def _prepare(self, cache_bytes: int | None) -> None:
        levels = find_fast_levels(self._path, self._oracle)
        self._is_fast = tuple(level is not None for level in levels)
        self._number = {
            n: i for i, n in enumerate(n for n, one in enumerate(levels) if one is not None)
        }
        kept = tuple(level for level in levels if level is not None)
        if kept:
            check_jpeg(self._path, kept[0])
        self._pixels = TiffPixels(self._path, kept, cache_bytes=cache_bytes)
        try:
            self._check_probes(levels)
        except BaseException:
            self._pixels.close()
            raise
        self._pixels.drop_decoded()
        if all(self._is_fast):
            self._oracle.rest()

    def _check_probes(self, levels: tuple[TiffLevel | None, ...]) -> None:
        for number, level in enumerate(levels):
            for x, y in () if level is None else _probe_places(level):
                self._check_probe(number, x, y)

    def _check_probe(self, level: int, x: int, y: int) -> None:
        downsample = self.level_downsamples[level]
        location = (round(x * downsample), round(y * downsample))
        if _whole_pixel(location[0], downsample) is None or (
            _whole_pixel(location[1], downsample) is None
        ):
            location = (0, 0)
        size = (PROBE_PX, PROBE_PX)
        try:
            expected = self._oracle.read_region(location, level, size)
        except SlideError:
            return  # what cannot be decoded proves nothing
        region = self._read_fast(location, level, size)
        if region is None or not np.array_equal(region, expected):
            raise SlideError(
                f"{self._path.name}: level {level} at {location} comes out unlike OpenSlide's"
            )

    @property
    def n_decoded(self) -> int:
        """File tiles decoded here so far."""
        return self._pixels.n_decoded

    def _read_region(
        self, location: tuple[int, int], level: int, size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        out = np.empty((size[1], size[0], 3), np.uint8)
        self._read_into(out, location, level)
        return out

    def _read_into(self, out: NDArray[np.uint8], location: tuple[int, int], level: int) -> None:
        self._pixels.check_open()
        size = (out.shape[1], out.shape[0])
        if self._is_fast[level]:
            try:
                if self._read_fast(location, level, size, out) is not None:
                    return
            except SlideError as error:
                log.debug("%s; asking OpenSlide", error)
        out[...] = self._oracle.read_region(location, level, size)

    def _read_fast(
        self,
        location: tuple[int, int],
        level: int,
        size: tuple[int, int],
        out: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8] | None:
        x, y = int(location[0]), int(location[1])
        if level:
            downsample = self.level_downsamples[level]
            left, top = _whole_pixel(x, downsample), _whole_pixel(y, downsample)
            is_cut = max(size) > OPENSLIDE_BLOCK_PX and not downsample.is_integer()
            if left is None or top is None or is_cut:
                return None
            x, y = left, top
        width, height = int(size[0]), int(size[1])
        return self._pixels.read_window(self._number[level], x, y, width, height, out=out)

    def read_level(
        self, corner: tuple[int, int], level: int, size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Read a level's own pixels, also where OpenSlide would interpolate between them."""
        check_region(self._path.name, level, len(self._is_fast), size)
        self._pixels.check_open()
        if not self._is_fast[level]:
            raise SlideError(f"{self._path.name}: level {level} is read by OpenSlide only")
        return self._pixels.read_window(self._number[level], *corner, *size)

    def close(self) -> None:
        """Release the file."""
        self._pixels.close()
        self._oracle.close()


def find_fast_levels(path: Path, oracle: OpenSlideReader) -> tuple[TiffLevel | None, ...]:
    """Find the TIFF directory behind each of OpenSlide's levels.

    Returns
    -------
    levels : (n_levels,)
        None where OpenSlide has to read the level: it makes up tiles that are not stored.

    Raises
    ------
    SlideError
        If the slide's layout is none that is known to come out equal.
    """
    if oracle.vendor not in VENDORS:
        raise SlideError(f"{path.name}: slides of {oracle.vendor} are read by OpenSlide")
    try:
        with tifffile.TiffFile(path) as tif:
            pages = list_pages(path.name, tif)
            found = [_find_page(path.name, pages, size) for size in oracle.level_sizes]
            levels = [_lay_out_known(path.name, page) for page in found]
    except SlideError:
        raise
    except Exception as error:  # damaged headers fail in as many ways as there are bytes
        raise SlideError(f"{path.name}: its TIFF directory is damaged: {error}") from error
    return tuple(
        level if _is_equal(level, levels[:number], oracle.vendor) else None
        for number, level in enumerate(levels)
    )


def _find_page(file_name: str, pages: list[Any], size: tuple[int, int]) -> Any:
    tiled = [p for p in pages if p.is_tiled and (p.imagewidth, p.imagelength) == size]
    if len(tiled) != 1:
        raise SlideError(f"{file_name}: {len(tiled)} tiled images of {size[0]} x {size[1]} px")
    return tiled[0]


def _lay_out_known(file_name: str, page: Any) -> TiffLevel:
    check_pixels(file_name, page)
    orientation = page.tags.valueof("Orientation", default=1)
    known = (
        page.samplesperpixel == 3
        and page.planarconfig == 1
        and page.fillorder == 1
        and page.predictor in (1, 2)
        and page.compression in COMPRESSIONS
        and int(orientation) == 1
    )
    if not known:
        raise SlideError(f"{file_name}: a layout that only OpenSlide reads ({page.compression!s})")
    return describe_level(file_name, (page,))


def _is_equal(level: TiffLevel, finer: list[TiffLevel], vendor: str) -> bool:
    # A tile without bytes is transparent in a plain TIFF; Aperio's are drawn from the finer level.
    if np.any((level.counts > 0) & (level.offsets == 0)):
        return False
    return vendor != "aperio" or all(np.all(one.counts > 0) for one in [*finer, level])


def _probe_places(level: TiffLevel) -> list[tuple[int, int]]:
    """Corners of the stored tiles with most bytes (most to get wrong), px of the level."""
    order = np.argsort(-level.counts.astype(np.float64), kind="stable").tolist()
    across = level.lattice[0]
    return [
        (index % across * level.segment[0], index // across * level.segment[1])
        for index in order[:PROBES_PER_LEVEL]
        if level.counts[index]
    ]


def _whole_pixel(position: int, downsample: float) -> int | None:
    """The level pixel that starts at a level-0 position; None between pixels."""
    if position < 0:
        return -int(-position / downsample)  # as OpenSlide does it left of and above the slide
    pixel = position / downsample
    return int(pixel) if pixel.is_integer() else None
