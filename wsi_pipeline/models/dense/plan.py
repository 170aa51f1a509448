"""What compiled code is made for: a network's sizes and schemes, and how many lanes it takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from llvmlite import binding

from wsi_pipeline.models.dense.lanes import Matrix
from wsi_pipeline.models.dense.schemes import Scheme
from wsi_pipeline.models.dense.weights import DenseWeights

PATCHES = 64  # whose corners go through all layers together, so that they stay in a near cache
PLACES = 64  # of an edge or of the interior that are multiplied at once
# 64 rows by 64 x 64 weights is as much as OpenBLAS multiplies without asking for more threads,
# and it is as fast as a large product (111 of 118 GF/s).

ROOM = PATCHES + 1  # rows; an odd number, so that products of one patch do not share cache sets
WIDE = bool(binding.get_host_cpu_features().get("avx512f"))  # 32 registers of 64 bytes
VECTOR_BYTES = 64 if WIDE else 32

compile_function: Callable[..., Any] = numba.njit(error_model="numpy", nogil=True)


def count_lanes(filters: int, dtype: str) -> int:
    """Return how many channels a vector takes, a divisor of their number."""
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    while filters % lanes:
        lanes //= 2
    return lanes


@dataclass(frozen=True)
class Plan:
    """All that compiled code depends on; its key in the cache."""

    m: int  # side of a patch, px
    filters: int
    dtype: str
    inputs: tuple[Matrix | None, ...]  # of each layer's scheme; the first has none
    outputs: tuple[Matrix | None, ...]

    @classmethod
    def of(cls, weights: DenseWeights) -> "Plan":
        """Return the plan of a network."""
        schemes = [layer.scheme for layer in weights.split]
        return cls(
            m=weights.m,
            filters=weights.filters,
            dtype=weights.readout.numpy().dtype.name,
            inputs=tuple(None if scheme is None else _rows(scheme, "inputs") for scheme in schemes),
            outputs=tuple(
                None if scheme is None else _rows(scheme, "outputs") for scheme in schemes
            ),
        )

    @property
    def layers(self) -> int:
        """How many."""
        return len(self.inputs)

    @property
    def inside(self) -> int:
        """Side of a patch's interior after the last layer."""
        return self.m - 2 * self.layers

    @property
    def products(self) -> tuple[int, ...]:
        """How many products each layer makes of a border, each way; then 0: none follow."""
        return (*(0 if matrix is None else len(matrix) for matrix in self.inputs), 0)

    @property
    def lanes(self) -> int:
        """Channels at a time."""
        return count_lanes(self.filters, self.dtype)

    def following(self, k: int) -> Matrix | None:
        """Return the matrix that makes values of layer k ready for the next one's products."""
        return self.inputs[k] if k < self.layers else None


def _rows(scheme: Scheme, name: str) -> Matrix:
    return tuple(tuple(row) for row in getattr(scheme, name).tolist())
