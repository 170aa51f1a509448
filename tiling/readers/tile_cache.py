"""Decoded file tiles, kept in the order of their last use within one budget of memory.

Neighbouring tiles of a row lie side by side in one *run*, so that a window over them is copied in
few pieces. Each tile is decoded by one thread while others that need it wait. The memory of runs
that are dropped is used again: the system would zero fresh memory page by page, which costs a sixth
of the time that decoding takes.

All open slides of a process share one cache (`shared_cache`) and its budget.
"""

import functools
import math
import os
import threading
from _thread import LockType
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from tiling.readers.memory import OPENSLIDE_SHARE, cache_budget
from tiling.threads import check_stopped

Pixels = NDArray[np.uint8]
SPARE_BUFFERS = 8  # dropped, or not used yet
# Memory is allocated for some runs at once: NumPy asks for huge pages from 4 MiB. Rows of a run are
# kilobytes apart, and each would need an entry of its own in the processor's table of small pages.
SLAB_BYTES = 12 * 2**20
WAIT_S = 0.5  # for another thread, before looking whether to stop


class Run:
    """Some tiles of one row of a level, side by side.

    Attributes
    ----------
    memory : (n_bytes,) uint8
        That holds the pixels.
    pixels : (rows, columns, 3) uint8
        Defined where `done`.
    done : (n_tiles,) bytes
        1 where a tile is decoded.
    """

    __slots__ = ("being_decoded", "done", "memory", "pixels", "users")

    def __init__(self, memory: Pixels, shape: tuple[int, int, int], n_tiles: int) -> None:
        self.memory = memory
        self.pixels: Pixels = memory[: math.prod(shape)].reshape(shape)
        self.done = bytearray(n_tiles)
        self.being_decoded: dict[int, LockType] = {}  # by tile, held until it is decoded
        self.users = 0

    def claim(self, tile: int) -> bool:
        """Take on decoding a tile, unless it is decoded or another thread is at it.

        Called with the cache's lock held; `settle` has to follow.
        """
        if tile in self.being_decoded or self.done[tile]:
            return False
        latch = threading.Lock()
        latch.acquire()
        self.being_decoded[tile] = latch
        return True

    def settle(self, tile: int, *, done: bool) -> None:
        """End what `claim` began, whether or not it succeeded, and wake those who wait."""
        self.done[tile] = done
        self.being_decoded.pop(tile).release()

    def wait(self, tile: int) -> bool:
        """Wait until no thread decodes a tile; return whether it is decoded."""
        latch = self.being_decoded.get(tile)
        if latch is not None:
            while not latch.acquire(timeout=WAIT_S):
                check_stopped()
            latch.release()
        return bool(self.done[tile])


class TileCache:
    """The least recently used runs are dropped first; memory in use is never used again.

    Parameters
    ----------
    budget : bytes
        Of the runs that are kept.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.lock = threading.Lock()
        self._wanted: dict[int, int] = {}
        self._runs: OrderedDict[tuple[int, Hashable], Run] = OrderedDict()
        self._kept_bytes = 0
        self._spare: list[Pixels] = []

    @property
    def kept_bytes(self) -> int:
        """Bytes of the runs held now, spare buffers not counted."""
        return self._kept_bytes

    def want(self, owner: int, n_bytes: int) -> None:
        """Say how much a slide can use; all together get no more than the budget.

        Parameters
        ----------
        owner : int
            Stands for the slide in all calls.
        """
        if self._wanted.get(owner, 0) < n_bytes:
            with self.lock:
                self._wanted[owner] = n_bytes

    def borrow(
        self, owner: int, requests: Sequence[tuple[Hashable, tuple[int, int, int], int]]
    ) -> list[Run]:
        """Get runs, new ones where there are none; `give_back` them after use. Holds the lock.

        Parameters
        ----------
        owner : int
        requests : (key, (rows, columns, 3), n_tiles)
        """
        runs = []
        for key, shape, n_tiles in requests:
            full_key = (owner, key)
            run = self._runs.get(full_key)
            if run is None:
                n_bytes = math.prod(shape)
                self._make_room(n_bytes)
                run = self._runs[full_key] = Run(self._take_memory(n_bytes), shape, n_tiles)
                self._kept_bytes += run.memory.nbytes
            else:
                self._runs.move_to_end(full_key)
            run.users += 1
            runs.append(run)
        return runs

    def give_back(self, runs: Iterable[Run]) -> None:
        """Release borrowed runs."""
        with self.lock:
            for run in runs:
                run.users -= 1

    def forget(self, owner: int, *, closed: bool = False) -> None:
        """Drop the runs of a slide, and what it wanted if it is closed."""
        with self.lock:
            if closed:
                self._wanted.pop(owner, None)
            for key in [key for key in self._runs if key[0] == owner]:
                self._drop(key)
            if not self._runs:
                self._spare.clear()

    def _make_room(self, n_bytes: int) -> None:
        most = min(self.budget, sum(self._wanted.values()))
        while self._runs and self._kept_bytes + n_bytes > most:
            self._drop(next(iter(self._runs)))

    def _drop(self, key: tuple[int, Hashable]) -> None:
        run = self._runs.pop(key)
        self._kept_bytes -= run.memory.nbytes
        if not run.users:
            self._spare.append(run.memory)
            del self._spare[:-SPARE_BUFFERS]

    def _take_memory(self, n_bytes: int) -> Pixels:
        for number in reversed(
            range(len(self._spare))
        ):  # the latest may be in the processor's cache
            if n_bytes <= self._spare[number].nbytes <= 2 * n_bytes:
                return self._spare.pop(number)
        if len(self._spare) >= SPARE_BUFFERS:
            self._spare.pop(0)
        n_parts = max(1, SLAB_BYTES // n_bytes)
        slab = np.empty(n_parts * n_bytes, np.uint8)
        first, *others = slab.reshape(n_parts, n_bytes)
        self._spare += others[: SPARE_BUFFERS - len(self._spare)]
        return first


@functools.cache
def shared_cache() -> TileCache:
    """Return the cache that all open slides of this process share.

    Raises
    ------
    SlideError
        If the environment variable that sets its budget is no positive number.
    """
    return TileCache(int(cache_budget() * (1 - OPENSLIDE_SHARE)))


# After a fork another thread's lock would never be released.
os.register_at_fork(after_in_child=shared_cache.cache_clear)
