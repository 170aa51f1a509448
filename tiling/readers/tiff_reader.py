"""8-bit RGB TIFF through tifffile: striped files, OME-TIFF, BigTIFF that OpenSlide does not take.

Reads RGB, RGBA (laid over white), YCbCr JPEG and grey (shown as equal red, green and blue), tiled
or in strips, pyramids in SubIFDs or in pages. Anything else is refused with its name. Memory stays
bounded: only the file tiles, or strips, that touch a region are decoded, and a few are kept for the
next region.
"""

import itertools
import math
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import tifffile
from numpy.typing import NDArray

from tiling.errors import SlideError
from tiling.readers.common import check_region, composite_over_white
from tiling.readers.tiff_metadata import read_mpp

CACHE_BYTES = 128 * 2**20  # decoded file tiles kept: a row of patches of a wide striped slide
LARGEST_SEGMENT_BYTES = 512 * 2**20  # decoded; a file of one huge compressed strip cannot be cut
STRIP_BYTES = 2**18  # uncompressed strips are read in pieces of about this size
WHITE = 255


@dataclass(frozen=True)
class _Level:
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


class TiffReader:
    """A slide read by tifffile; reads may come from many threads at once.

    Parameters
    ----------
    path : Path
        A TIFF file, one whole slide in it.

    Raises
    ------
    SlideError
        If the file is no TIFF, or its pixels are not 8-bit RGB or grey.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()
        self._cached_bytes = 0
        try:
            self._tif = tifffile.TiffFile(path)
        except Exception as error:  # damaged headers fail in as many ways as there are bytes
            raise SlideError(f"{path.name}: not a TIFF that can be read: {error}") from error
        try:
            self._describe()
        except SlideError:
            self._tif.close()
            raise
        except Exception as error:  # so do damaged directories
            self._tif.close()
            raise SlideError(f"{path.name}: its TIFF directory is damaged: {error}") from error

    def _describe(self) -> None:
        pages = _pyramid_pages(self._tif)
        for page in pages:
            _check_pixels(self._path.name, page)
        self._levels = tuple(_lay_out(self._path.name, page) for page in pages)
        self._mpp = read_mpp(self._tif, pages[0])

    @property
    def vendor(self) -> str:
        """``ome-tiff`` or, as OpenSlide says, ``generic-tiff``."""
        return "ome-tiff" if self._tif.is_ome else "generic-tiff"

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
        end = self._tif.filehandle.size
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
        downsample = self.level_downsamples[level]
        (x, share_x), (y, share_y) = (_level_position(value, downsample) for value in location)
        width, height = size
        wide, high = width + (share_x > 0), height + (share_y > 0)
        region = self._read_window(level, x, y, wide, high)
        return _blend(region, share_x, share_y) if share_x or share_y else region

    def _read_window(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> NDArray[np.uint8]:
        # (x, y) in px of the level; outside is white
        region = np.full((height, width, 3), WHITE, np.uint8)
        layout = self._levels[level]
        tile_width, tile_height = layout.segment
        for column, row in _touched(layout, x, y, width, height):
            segment = self._segment(level, column, row)
            if segment is None:
                continue
            left, top = column * tile_width, row * tile_height
            right = min(left + segment.shape[1], layout.size[0], x + width)
            bottom = min(top + segment.shape[0], layout.size[1], y + height)
            x0, y0 = max(left, x), max(top, y)
            region[y0 - y : bottom - y, x0 - x : right - x] = segment[
                y0 - top : bottom - top, x0 - left : right - left
            ]
        return region

    def _segment(self, level: int, column: int, row: int) -> NDArray[np.uint8] | None:
        layout = self._levels[level]
        index = row * layout.lattice[0] + column
        key = (level, index)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        segment = self._decode(layout, level, index)
        if segment is not None:
            self._keep(key, segment)
        return segment

    def _keep(self, key: tuple[int, int], segment: NDArray[np.uint8]) -> None:
        with self._lock:
            if key not in self._cache:
                self._cache[key] = segment
                self._cached_bytes += segment.nbytes
            while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
                self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes

    def _decode(self, layout: _Level, level: int, index: int) -> NDArray[np.uint8] | None:
        across, down = layout.lattice
        planes = [index + plane * across * down for plane in range(layout.n_planes)]
        if not any(layout.counts[plane] for plane in planes):
            return None
        try:
            samples = [_decode_plane(layout, self._read_bytes(layout, i), i) for i in planes]
            return _to_rgb(np.concatenate(samples, axis=-1), layout.page)
        except SlideError:
            raise
        except Exception as error:  # each codec has errors of its own
            raise SlideError(
                f"{self._path.name}: cannot decode file tile {index} of level {level}: {error}"
            ) from error

    def _read_bytes(self, layout: _Level, index: int) -> bytes:
        offset, count = layout.offsets[index], layout.counts[index]
        with self._lock:
            handle = self._tif.filehandle
            if handle.closed:
                raise SlideError(f"{self._path.name}: the slide is closed; open it again")
            handle.seek(offset)
            data: bytes = handle.read(count)
        if len(data) < count:
            raise SlideError(
                f"{self._path.name}: the file ends at byte {handle.size}, before file tile {index} "
                f"(bytes {offset} to {offset + count}); it was cut off, copy it again"
            )
        return data

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            self._tif.close()
            self._cache.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _pyramid_pages(tif: Any) -> list[Any]:
    """The finest image and its smaller copies, the finest first."""
    pages = [page.aspage() for page in tif.pages]
    base = max(pages, key=lambda page: page.imagewidth * page.imagelength)  # the first of equals
    inside = [page.aspage() for page in base.pages] if base.subifds else []
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


def _check_pixels(file_name: str, page: Any) -> None:
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
    if page.photometric == photometric.YCBCR and not is_jpeg:
        raise SlideError(
            f"{file_name}: YCbCr with {_name(page.compression)} compression is not read; "
            "convert it to RGB"
        )


def _name(value: Any) -> str:
    return str(getattr(value, "name", value))


def _lay_out(file_name: str, page: Any) -> _Level:
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
    level = _Level(page, (width, height), segment, offsets, counts, is_raw=False)
    expected = math.prod(level.lattice) * level.n_planes
    if not expected == len(offsets) == len(counts):
        raise SlideError(
            f"{file_name}: its directory lists {len(offsets)} file tiles, {expected} are needed"
        )
    return level


def _cut_strips(page: Any, rows_per_strip: int) -> _Level | None:
    """Cut uncompressed strips into pieces of a few rows, so that a huge strip is not read whole."""
    width, height = page.imagewidth, page.imagelength
    row_bytes = width * page.samplesperpixel
    plain = page.compression == 1 and page.planarconfig == 1 and page.fillorder == 1
    if not plain or not page.is_contiguous or rows_per_strip * row_bytes <= STRIP_BYTES:
        return None
    rows = max(1, STRIP_BYTES // row_bytes)
    tops = range(0, height, rows)
    return _Level(
        page,
        (width, height),
        (width, rows),
        offsets=tuple(page.dataoffsets[0] + top * row_bytes for top in tops),
        counts=tuple(min(rows, height - top) * row_bytes for top in tops),
        is_raw=True,
    )


def _touched(layout: _Level, x: int, y: int, width: int, height: int) -> Iterator[tuple[int, int]]:
    columns, rows = (
        _touched_span(start, length, side, step)
        for start, length, side, step in zip(
            (x, y), (width, height), layout.size, layout.segment, strict=True
        )
    )
    for row, column in itertools.product(rows, columns):
        yield column, row


def _touched_span(start: int, length: int, side: int, step: int) -> range:
    first, end = max(start, 0), min(start + length, side)
    return range(first // step, math.ceil(end / step)) if end > first else range(0)


def _decode_plane(layout: _Level, data: bytes, index: int) -> NDArray[np.uint8]:
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


def _level_position(location: int, downsample: float) -> tuple[int, float]:
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
