"""Patches and labels, item by item, for data loaders.

A dataset here is what torch calls map-style: it has ``__len__`` and ``__getitem__``, which is all
that ``torch.utils.data.DataLoader``, ``Subset`` and ``ConcatDataset`` need. Items are NumPy arrays
and ints, which the loader's default collation makes tensors of; so this package needs no torch.
"""

from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Readable(Protocol):
    """A patch store, as far as a dataset needs it."""

    @property
    def label(self) -> NDArray[np.int8]:
        """(N,) 1, 0, or -1: unlabelled or ignored."""

    def read(self, indices: ArrayLike) -> NDArray[np.uint8]:
        """Read patches, (n, P, P, 3)."""


class PatchDataset:
    """Patches and labels of one store; made by `PatchStore.as_dataset`.

    Attributes
    ----------
    rows : (n,) int64
        Which patch of the store each item is.
    """

    def __init__(self, store: Readable, rows: NDArray[np.int64]) -> None:
        self._store = store
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"no item {index}; the dataset has {len(self)}, counted from 0")
        row = self.rows[index]
        patch = self._store.read([row])[0].transpose(2, 0, 1)
        return np.ascontiguousarray(patch, np.float32) / np.float32(255), int(
            self._store.label[row]
        )
