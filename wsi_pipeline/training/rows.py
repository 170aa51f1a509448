"""Chosen patches of some stores, as validation and other whole passes read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import PatchOrigin
from wsi_pipeline.cohort.data import Patches, choose_validation, usable_labels


@dataclass(frozen=True)
class Rows:
    """Chosen patches of some stores, by store and row."""

    stores: Sequence[Patches]
    slide: NDArray[np.int64]  # (n,) index into `stores`
    patch: NDArray[np.int64]  # (n,) row of that store
    label: NDArray[np.int8]  # (n,)

    @classmethod
    def choose(cls, stores: Sequence[Patches], most: int | None, *, seed: int) -> Self:
        """Choose at most so many patches (None: all labelled ones), half of each class."""
        labels = [usable_labels(store) for store in stores]
        return cls(stores, *choose_validation(labels, most=most, seed=seed))

    def locate(self, row: int) -> PatchOrigin:
        """Return where a patch is from."""
        return self.stores[int(self.slide[row])].locate(int(self.patch[row]))
