"""Windows of a TIFF's levels, each file tile decoded once while it is kept."""

import itertools
import math
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from tiling.errors import SlideError
from tiling.readers.tiff_decode import WHITE, Decoder, make_decoder
from tiling.readers.tiff_levels import TiffLevel
from tiling.readers.tile_cache import Run, TileCache, shared_cache
from tiling.threads import check_stopped

LEAST_CACHE_BYTES = 16 * 2**20
MOST_BYTES_PER_SAMPLE = 4  # stored; what cannot be made smaller grows by a few per cent
RUN_BYTES = 3 * 2**20  # of neighbouring tiles that are kept together, at most, if more than one
RUNS_OF_LEAST_CACHE = 16  # a small cache keeps at least so many
MOST_BORROWED_BYTES = 32 * 2**20  # of runs that one window holds at a time
KEPT_SCRATCH_BYTES = 4 * 2**20  # of each thread

Pixels = NDArray[np.uint8]
_numbers = itertools.count()


@dataclass(frozen=True)
class _Layout:
    """What reading needs of a level; its page, with tables of all tiles, is not kept."""

    size: tuple[int, int]  # (width, height), px
    segment: tuple[int, int]  # (width, height), px
    lattice: tuple[int, int]  # segments (across, down)
    offsets: NDArray[np.uint64]
    counts: NDArray[np.uint64]
    n_planes: int
    n_samples: int
    run: int  # segments of a row that are kept together
    shape: tuple[int, int, int]  # of a decoded segment: (rows, columns, 3)
    is_small: bool  # each thread keeps memory for one segment
    row_bytes: int  # of a decoded row of segments


_Cut = tuple[int, slice, slice]  # a segment, where in the window, where in the segment
_Claim = tuple[Run, int, int, int]  # a run, a tile in it; the tile's row and column


@dataclass(frozen=True)
class _Group:
    """Neighbouring columns of tiles in one run, as a window needs them."""

    number: int  # of the run in its row
    first: int  # column of the run's first tile
    n_tiles: int  # in the run
    shape: tuple[int, int, int]  # of the run's pixels
    needed: range  # tiles of the run
    into: slice  # columns of the window
    origin: slice  # columns of the run


class TiffPixels:
    """Reads windows of whole pixels; from many threads at once.

    Decoded file tiles are kept for the next windows: as many as a row of windows across the slide
    touches, so that a pass in raster order decodes each once, but never more than the cache allows.

    Parameters
    ----------
    path : Path
    levels : (n_levels,)
    cache_bytes : int, optional
        The most that is kept of decoded file tiles of this slide; 0: nothing. None: all slides
        of the process share one budget (`tiling.readers.memory`).

    Raises
    ------
    SlideError
        If the file cannot be opened.
    """

    def __init__(
        self, path: Path, levels: tuple[TiffLevel, ...], *, cache_bytes: int | None = None
    ) -> None:
        self._name = path.name
        self._number = next(_numbers)
        self._keeps = cache_bytes != 0
        self.cache = shared_cache() if cache_bytes is None else TileCache(cache_bytes)
        self._layouts = tuple(_lay_out(level, self.cache.budget) for level in levels)
        self._decoders: tuple[Decoder, ...] = tuple(make_decoder(level) for level in levels)
        self._own = threading.local()
        self._counting = threading.Lock()
        self.n_decoded = 0  # tiles decoded so far
        self.cache.want(self._number, LEAST_CACHE_BYTES)
        try:
            self._file: BinaryIO = path.open("rb", buffering=0)
        except OSError as error:
            raise SlideError(f"{path.name}: cannot be opened: {error.strerror or error}") from error
        self._end = os.fstat(self._file.fileno()).st_size

    def read_window(
        self,
        level: int,
        x: int,
        y: int,
        width: int,
        height: int,
        *,
        out: Pixels | None = None,
    ) -> Pixels:
        """Read whole pixels of a level; what lies outside it is white.

        Parameters
        ----------
        level : int
        x, y, width, height : px of the level
        out : (height, width, 3) uint8, optional
            Memory to fill; need not be contiguous.

        Returns
        -------
        window : (height, width, 3) uint8
            `out` where it is given.

        Raises
        ------
        SlideError
            If a file tile cannot be read or decoded.
        """
        layout = self._layouts[level]
        window = np.empty((height, width, 3), np.uint8) if out is None else out
        inside = x >= 0 and x + width <= layout.size[0] and y >= 0 and y + height <= layout.size[1]
        if not inside:
            window.fill(WHITE)
        columns = _cut(x, width, layout.size[0], layout.segment[0])
        rows = _cut(y, height, layout.size[1], layout.segment[1])
        if not columns:
            return window
        if self._keeps:
            self.cache.want(self._number, (len(rows) + 1) * layout.row_bytes)
            groups = _group(columns, layout)
            row_bytes = sum(math.prod(group.shape) for group in groups)
            together = max(1, MOST_BORROWED_BYTES // row_bytes)
            for start in range(0, len(rows), together):
                self._copy_kept(level, window, rows[start : start + together], groups)
        else:
            for (row, into_y, from_y), (column, into_x, from_x) in itertools.product(rows, columns):
                tile = self._decode(level, row, column, self._scratch(layout))
                window[into_y, into_x] = tile[from_y, from_x]
        return window

    def _copy_kept(
        self, level: int, window: Pixels, rows: list[_Cut], groups: list[_Group]
    ) -> None:
        """Fill the part of a window that lies in some rows of tiles; decode those not kept."""
        cache = self.cache
        requests = [
            ((level, row, group.number), group.shape, group.n_tiles)
            for row, *_ in rows
            for group in groups
        ]
        claimed: list[_Claim] = []
        awaited: list[_Claim] = []
        with cache.lock:
            runs = cache.borrow(self._number, requests)
            remaining = iter(runs)
            for row, *_ in rows:
                for group in groups:
                    run = next(remaining)
                    for tile in group.needed:
                        if run.done[tile]:
                            continue
                        ours = run.claim(tile)
                        (claimed if ours else awaited).append((run, tile, row, group.first + tile))
        try:
            self._fill(level, claimed)
            for one in awaited:
                while not one[0].wait(one[1]):  # the thread that decoded it failed
                    with cache.lock:
                        ours = one[0].claim(one[1])
                    if ours:
                        self._fill(level, [one])
            remaining = iter(runs)
            for _, into_y, from_y in rows:
                for group in groups:
                    window[into_y, group.into] = next(remaining).pixels[from_y, group.origin]
        finally:
            cache.give_back(runs)

    def _fill(self, level: int, claimed: list[_Claim]) -> None:
        """Decode tiles into their runs; after a failure the rest is left to others."""
        layout = self._layouts[level]
        width = layout.segment[0]
        left = iter(claimed)
        try:
            for run, tile, row, column in left:
                done = False
                try:
                    place = run.pixels[:, tile * width : (tile + 1) * width]
                    buffer = place if layout.run == 1 else self._scratch(layout)
                    pixels = self._decode(level, row, column, buffer)
                    if pixels is not place:
                        place[: len(pixels), : pixels.shape[1]] = pixels
                    done = True
                finally:
                    run.settle(tile, done=done)
        finally:
            for run, tile, *_ in left:
                run.settle(tile, done=False)

    def _scratch(self, layout: _Layout) -> Pixels:
        """Return memory for one tile, this thread's own; its pixels stay until the next tile."""
        if not layout.is_small:
            return np.empty(layout.shape, np.uint8)
        scratch: Pixels | None = getattr(self._own, "scratch", None)
        if scratch is None or scratch.shape != layout.shape:
            scratch = self._own.scratch = np.empty(layout.shape, np.uint8)
        return scratch

    def _decode(self, level: int, row: int, column: int, buffer: Pixels) -> Pixels:
        """Decode a file tile, white if none is stored; `buffer` may be filled and returned."""
        layout = self._layouts[level]
        index = row * layout.lattice[0] + column
        indices = [index]
        if layout.n_planes > 1:
            step = math.prod(layout.lattice)
            indices = list(range(index, index + layout.n_planes * step, step))
        check_stopped()
        data = [self._read_bytes(layout, plane) for plane in indices]
        if not any(data):
            buffer.fill(WHITE)
            return buffer
        try:
            pixels = self._decoders[level](data, indices, buffer)
        except Exception as error:  # each codec has errors of its own
            raise SlideError(
                f"{self._name}: cannot decode file tile {index} of level {level}: {error}"
            ) from error
        with self._counting:
            self.n_decoded += 1
        return pixels

    def _read_bytes(self, layout: _Layout, index: int) -> bytes:
        count = layout.counts.item(index)
        if not count:
            return b""
        offset = layout.offsets.item(index)
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

    def _check_bytes(self, layout: _Layout, index: int, offset: int, count: int) -> None:
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

    def drop_decoded(self) -> None:
        """Keep none of the tiles decoded so far."""
        self.cache.forget(self._number)

    def check_open(self) -> None:
        """Refuse to go on with a closed slide."""
        if self._file.closed:
            raise SlideError(f"{self._name}: the slide is closed; open it again")

    def close(self) -> None:
        """Release the file and the memory."""
        self._file.close()
        self.cache.forget(self._number, closed=True)


def _lay_out(level: TiffLevel, budget: int) -> _Layout:
    width, height = level.segment
    segment_bytes = width * height * 3
    most = min(RUN_BYTES, budget // RUNS_OF_LEAST_CACHE)
    return _Layout(
        level.size,
        level.segment,
        level.lattice,
        level.offsets,
        level.counts,
        level.n_planes,
        level.n_samples,
        run=min(max(1, most // segment_bytes), level.lattice[0]),
        shape=(height, width, 3),
        is_small=segment_bytes <= KEPT_SCRATCH_BYTES,
        row_bytes=level.lattice[0] * segment_bytes,
    )


def _cut(start: int, length: int, side: int, step: int) -> list[_Cut]:
    """Cut an interval at the borders of segments."""
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


def _group(columns: list[_Cut], layout: _Layout) -> list[_Group]:
    """Join neighbouring columns of tiles to runs."""
    groups = []
    height, width, _ = layout.shape
    for number, members in itertools.groupby(columns, lambda cut: cut[0] // layout.run):
        parts = list(members)
        first = number * layout.run
        n_tiles = min(layout.run, layout.lattice[0] - first)
        needed = range(parts[0][0] - first, parts[-1][0] - first + 1)
        groups.append(
            _Group(
                number=number,
                first=first,
                n_tiles=n_tiles,
                shape=(height, n_tiles * width, 3),
                needed=needed,
                into=slice(parts[0][1].start, parts[-1][1].stop),
                origin=slice(
                    needed[0] * width + parts[0][2].start, needed[-1] * width + parts[-1][2].stop
                ),
            )
        )
    return groups
