"""Batches of patches, read ahead by threads while the device computes."""

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tiling.threads import map_in_threads
from wsi_pipeline.cohort.data import Batch, Patches, load_batch


class BatchReader:
    """Reads batches in order.

    Parameters
    ----------
    device : torch.device
        That computes on them: for a GPU, their memory is pinned.
    threads : int
        That read ahead.

    Attributes
    ----------
    seconds_waited : float
        Of all batches until now, for pixels.
    """

    def __init__(self, device: torch.device, *, threads: int) -> None:
        self._pinned = device.type == "cuda"
        self._threads = threads
        self.seconds_waited = 0.0

    def read(
        self,
        stores: Sequence[Patches],
        slide: NDArray[np.int64],
        patch: NDArray[np.int64],
        rows: Sequence[NDArray[np.int64]],
    ) -> Iterator[Batch]:
        """Read a batch for each of `rows`.

        Parameters
        ----------
        stores : sequence of Patches
        slide, patch : (n,)
            Index into `stores`, and row of that store.
        rows : sequence of (m,) indices into `slide` and `patch`
            Empty: this process has no share of the batch.
        """

        def load(chosen: NDArray[np.int64]) -> Batch:
            if not len(chosen):
                return Batch(torch.empty((0, 1, 1, 3), dtype=torch.uint8), np.zeros(0, np.bool_))
            return load_batch(stores, slide[chosen], patch[chosen], pinned=self._pinned)

        batches = map_in_threads(load, rows, threads=self._threads)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.seconds_waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch
