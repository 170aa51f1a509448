"""Decoded file tiles, kept up to so many bytes and shared by threads.

Each tile is decoded by one thread while others that want it wait for it. The memory of tiles that
were let go is used again for the next: fresh memory would be zeroed by the system page by page,
which costs a sixth of the time that decoding takes.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Decode = Callable[[Pixels], Pixels]  # given memory that it may use, the tile's pixels

SPARE_BUFFERS = 8  # let go and not yet used again


class Tile:
    """A decoded file tile; its pixels stay between `TileCache.borrow` and `give_back`."""

    __slots__ = ("error", "pixels", "ready", "users")

    def __init__(self) -> None:
        self.pixels: Any = None  # (rows, columns, 3) uint8 once it is decoded
        self.error: BaseException | None = None
        self.users = 1
        self.ready = threading.Event()


class TileCache:
    """The least recently used tiles go first; what is in use is never reused.

    Parameters
    ----------
    budget : bytes
        Of the pixels that are kept.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.n_decoded = 0  # tiles decoded so far
        self._lock = threading.Lock()
        self._tiles: OrderedDict[Hashable, Tile] = OrderedDict()
        self._kept_bytes = 0
        self._spare: list[Pixels] = []

    @property
    def kept_bytes(self) -> int:
        """Bytes of the pixels held now, spare buffers not counted."""
        return self._kept_bytes

    def borrow(self, key: Hashable, decode: Decode, shape: tuple[int, int, int]) -> Tile:
        """Get a tile, decoded by `decode` unless it is here; `give_back` it after use.

        Parameters
        ----------
        key : hashable
        decode : function
            Gets an array of `shape` whose memory it may fill; returns the tile's pixels.
        shape : (rows, columns, 3)

        Raises
        ------
        Exception
            What `decode` raised, in each thread that waited for the tile; the next call retries.
        """
        with self._lock:
            tile = self._tiles.get(key)
            if tile is not None:
                self._tiles.move_to_end(key)
                tile.users += 1
            else:
                mine = self._tiles[key] = Tile()
                buffer = self._take_spare(shape)
        if tile is None:
            return self._fill(key, mine, decode, buffer)
        if tile.pixels is None:
            tile.ready.wait()
            if tile.error is not None:
                raise tile.error
        return tile

    def _fill(self, key: Hashable, tile: Tile, decode: Decode, buffer: Pixels) -> Tile:
        try:
            pixels = decode(buffer)
        except BaseException as error:
            with self._lock:
                if self._tiles.get(key) is tile:
                    del self._tiles[key]
                self._keep_spare(buffer)
            tile.error = error
            tile.ready.set()
            raise
        with self._lock:
            tile.pixels = pixels
            self.n_decoded += 1
            if self._tiles.get(key) is tile:  # not cleared meanwhile
                self._kept_bytes += pixels.nbytes
            if pixels is not buffer:
                self._keep_spare(buffer)
            self._shrink()
        tile.ready.set()
        return tile

    def borrow_held(self, keys: Sequence[Hashable]) -> list[Tile | None]:
        """Get the tiles that are here and decoded, None for others; `give_back` them after."""
        held: list[Tile | None] = []
        with self._lock:
            for key in keys:
                tile = self._tiles.get(key)
                if tile is not None:
                    if tile.pixels is None:  # another thread is decoding it
                        tile = None
                    else:
                        self._tiles.move_to_end(key)
                        tile.users += 1
                held.append(tile)
        return held

    def give_back(self, tiles: Iterable[Tile | None]) -> None:
        """Release borrowed tiles; None is ignored."""
        with self._lock:
            for tile in tiles:
                if tile is not None:
                    tile.users -= 1

    def clear(self) -> None:
        """Forget every tile."""
        with self._lock:
            self._tiles.clear()
            self._spare.clear()
            self._kept_bytes = 0

    def _shrink(self) -> None:
        # The last one is what was just asked for.
        while self._kept_bytes > self.budget and len(self._tiles) > 1:
            key, tile = next(iter(self._tiles.items()))
            if tile.pixels is None:  # being decoded
                return
            del self._tiles[key]
            self._kept_bytes -= tile.pixels.nbytes
            if not tile.users:
                self._keep_spare(tile.pixels)

    def _take_spare(self, shape: tuple[int, int, int]) -> Pixels:
        while self._spare:
            buffer = self._spare.pop()
            if buffer.shape == shape:
                return buffer
        return np.empty(shape, np.uint8)

    def _keep_spare(self, buffer: Pixels) -> None:
        if len(self._spare) < SPARE_BUFFERS and buffer.flags.owndata and buffer.flags.writeable:
            self._spare.append(buffer)
