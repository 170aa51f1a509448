"""Windows of a TIFF's levels, each file tile decoded once while it is kept."""

import itertools
import math
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from tiling.errors import SlideError
from tiling.readers.base import CACHE_BYTES
from tiling.readers.tiff_decode import WHITE, Decoder, make_decoder
from tiling.readers.tiff_levels import TiffLevel
from tiling.readers.tile_cache import Tile, TileCache
from tiling.threads import check_stopped

LEAST_CACHE_BYTES = 16 * 2**20
MOST_BYTES_PER_SAMPLE = 4  # stored; what cannot be made smaller grows by a few per cent


class TiffPixels:
    """Reads windows of whole pixels; from many threads at once.

    Decoded file tiles are kept for the next windows: as many as a row of windows across the slide
    touches, so that a pass in raster order decodes each once, but never more than `cache_bytes`.

    Parameters
    ----------
    path : Path
    levels : (n_levels,)
    cache_bytes : int
        The most that is kept of decoded file tiles.

    Raises
    ------
    SlideError
        If the file cannot be opened.
    """

    def __init__(
        self, path: Path, levels: tuple[TiffLevel, ...], *, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._name = path.name
        self._levels = levels
        self._decoders: tuple[Decoder, ...] = tuple(make_decoder(level) for level in levels)
        self._most_bytes = cache_bytes
        self.cache = TileCache(min(LEAST_CACHE_BYTES, cache_bytes))
        try:
            self._file: BinaryIO = path.open("rb", buffering=0)
        except OSError as error:
            raise SlideError(f"{path.name}: cannot be opened: {error.strerror or error}") from error
        self._end = os.fstat(self._file.fileno()).st_size

    def read_window(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read whole pixels of a level; what lies outside it is white.

        Parameters
        ----------
        level : int
        x, y, width, height : px of the level

        Returns
        -------
        window : (height, width, 3) uint8

        Raises
        ------
        SlideError
            If a file tile cannot be read or decoded.
        """
        layout = self._levels[level]
        inside = x >= 0 and x + width <= layout.size[0] and y >= 0 and y + height <= layout.size[1]
        window = np.empty((height, width, 3), np.uint8)
        if not inside:
            window.fill(WHITE)
        self._provide_for(layout, height)
        columns = _cut(x, width, layout.size[0], layout.segment[0])
        rows = _cut(y, height, layout.size[1], layout.segment[1])
        across = layout.lattice[0]
        keys = [(level, row * across + column) for row, *_ in rows for column, *_ in columns]
        tiles = self.cache.borrow_held(keys)
        try:
            places = itertools.product(rows, columns)
            for number, ((_, into_y, from_y), (_, into_x, from_x)) in enumerate(places):
                tile = tiles[number]
                if tile is None:
                    tile = tiles[number] = self._borrow(layout, *keys[number])
                pixels = WHITE if tile is None else tile.pixels[from_y, from_x]
                window[into_y, into_x] = pixels
        finally:
            self.cache.give_back(tiles)
        return window

    def _borrow(self, layout: TiffLevel, level: int, index: int) -> Tile | None:
        """Decode a file tile, or wait for another thread that does; None if none is stored."""
        indices = self._planes(layout, index)
        if not any(layout.counts[plane] for plane in indices):
            return None
        return self.cache.borrow(
            (level, index),
            lambda buffer: self._decode(level, indices, buffer),
            (layout.segment[1], layout.segment[0], 3),
        )

    def _planes(self, layout: TiffLevel, index: int) -> list[int]:
        if layout.n_planes == 1:
            return [index]
        across, down = layout.lattice
        return [index + plane * across * down for plane in range(layout.n_planes)]

    def _decode(
        self, level: int, indices: list[int], buffer: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        layout = self._levels[level]
        check_stopped()
        data = [self._read_bytes(layout, index) for index in indices]
        try:
            return self._decoders[level](data, indices, buffer)
        except Exception as error:  # each codec has errors of its own
            raise SlideError(
                f"{self._name}: cannot decode file tile {indices[0]} of level {level}: {error}"
            ) from error

    def _read_bytes(self, layout: TiffLevel, index: int) -> bytes:
        offset, count = layout.offsets[index], layout.counts[index]
        if not count:
            return b""
        self._check_bytes(layout, index, offset, count)
        try:
            data = os.pread(self._file.fileno(), count, offset)
        except ValueError as error:
            raise SlideError(f"{self._name}: the slide is closed; open it again") from error
        except (OSError, OverflowError) as error:
            raise SlideError(f"{self._name}: bytes {offset} ff. cannot be read: {error}") from error
        if len(data) < count:
            raise self._cut_off(index, offset, count)
        return data

    def _check_bytes(self, layout: TiffLevel, index: int, offset: int, count: int) -> None:
        # Before memory is allocated: a damaged directory may claim exabytes.
        if offset + count > self._end:
            raise self._cut_off(index, offset, count)
        across, down = layout.segment
        if count > MOST_BYTES_PER_SAMPLE * across * down * layout.n_samples + 2**20:
            raise SlideError(
                f"{self._name}: file tile {index} of {across} x {down} px has {count} bytes; the "
                "directory is damaged, copy the file again"
            )

    def _cut_off(self, index: int, offset: int, count: int) -> SlideError:
        return SlideError(
            f"{self._name}: the file ends before file tile {index} (bytes {offset} to "
            f"{offset + count}); it was cut off, copy it again"
        )

    def _provide_for(self, layout: TiffLevel, height: int) -> None:
        rows = math.ceil(height / layout.segment[1]) + 1
        wanted = rows * layout.lattice[0] * layout.segment[0] * layout.segment[1] * 3
        if wanted > self.cache.budget:
            self.cache.budget = max(self.cache.budget, min(wanted, self._most_bytes))

    def check_open(self) -> None:
        """Refuse to go on with a closed slide."""
        if self._file.closed:
            raise SlideError(f"{self._name}: the slide is closed; open it again")

    def close(self) -> None:
        """Release the file and the memory."""
        self._file.close()
        self.cache.clear()


def _cut(start: int, length: int, side: int, step: int) -> list[tuple[int, slice, slice]]:
    """Cut an interval at the borders of segments: (segment, where in the window, where in it)."""
    first, end = max(start, 0), min(start + length, side)
    pieces = []
    while first < end:
        number = first // step
        stop = min((number + 1) * step, end)
        begin = number * step
        pieces.append(
            (number, slice(first - start, stop - start), slice(first - begin, stop - begin))
        )
        first = stop
    return pieces
