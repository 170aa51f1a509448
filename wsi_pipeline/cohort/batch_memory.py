"""Memory for batches of pixels, used again when a batch is no longer needed.

Batches take megabytes each. Fresh memory of that size comes from the system and is zeroed page by
page at its first use, which takes longer than reading stored patches into it.
"""

import math
import threading
import weakref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST_SPARE_BYTES = 512 * 2**20  # that wait for another batch


class BatchMemory:
    """Gives out tensors whose memory returns by itself once nothing refers to them; for threads."""

    def __init__(self, most_spare_bytes: int = MOST_SPARE_BYTES) -> None:
        self._most = most_spare_bytes
        self._spare: list[NDArray[np.uint8]] = []
        self._lock = threading.RLock()  # collection of garbage may give memory back at any point

    def take(self, shape: tuple[int, ...], *, pinned: bool = False) -> Tensor:
        """Return a uint8 tensor with undefined values.

        Parameters
        ----------
        shape : tuple of int
        pinned : bool
            In page-locked memory, from which a GPU can copy while it computes. PyTorch keeps that
            memory itself, until the copy is done.
        """
        if pinned:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        n_bytes = math.prod(shape)
        memory = self._take_spare(n_bytes)
        view = memory[:n_bytes].reshape(shape)
        # The tensor keeps `view` alive, and so do all tensors that share its memory.
        finalizer = weakref.finalize(view, self._give_back, memory)
        finalizer.atexit = False
        return torch.from_numpy(view)

    def _take_spare(self, n_bytes: int) -> NDArray[np.uint8]:
        with self._lock:
            for number, memory in enumerate(self._spare):
                if n_bytes <= memory.nbytes <= 2 * n_bytes:
                    return self._spare.pop(number)
        return np.empty(n_bytes, np.uint8)

    def _give_back(self, memory: NDArray[np.uint8]) -> None:
        with self._lock:
            self._spare.append(memory)
            while sum(spare.nbytes for spare in self._spare) > self._most:
                self._spare.pop(0)


batch_memory = BatchMemory()  # of this process
