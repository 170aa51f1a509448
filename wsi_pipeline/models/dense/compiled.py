"""All patches of a block on a CPU, compiled by numba; `regions` is the same in plain torch.

In `regions`, every step between two matrix products (combine products, add shared values, apply
the ReLU, transform values for the next products) reads and writes all values of the block. Here
they are one pass over the values of one patch, or of one position of an edge, in registers and the
innermost cache. A few patches at a time go through all layers, so that they also stay in cache
between layers. The shared values (interior and edges) are computed first, then the corners.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_pipeline.models.dense.compiled_corners import between_size, compile_corner
from wsi_pipeline.models.dense.compiled_shared import compile_shared
from wsi_pipeline.models.dense.plan import PATCHES, ROOM, Plan
from wsi_pipeline.models.dense.scratch import Scratch
from wsi_pipeline.models.dense.weights import CORNERS, FAR, SIDES, DenseWeights

Flat = NDArray[Any]
# Flat taps of all layers, one after the other, and where each layer's begin.
Taps = tuple[Flat, NDArray[np.int64]]


class CompiledBlocks:
    """A network whose layers are all computed by regions, ready for any number of blocks.

    Compiles, once per process and kind of network, when the first block is mapped.
    """

    def __init__(self, weights: DenseWeights, scratch: Scratch) -> None:
        self.plan = Plan.of(weights)
        self.weights = weights
        self.scratch = scratch
        split, filters = weights.split, weights.filters
        self.taps = [
            layer.taps.view(-1, 9, filters).transpose(0, 1).contiguous().numpy() for layer in split
        ]  # (9, ci, co)
        self.bias = torch.stack([layer.bias for layer in split]).numpy().reshape(-1)
        self.edges = {
            side: self._join([_split_taps(layer.edges[side], filters) for layer in split[1:]])
            for side in SIDES
        }
        self.corners = {
            corner: self._join([layer.corners[corner] for layer in split[1:]]) for corner in CORNERS
        }
        self.readout = weights.readout.numpy().reshape(-1)

    def map_block(self, pixels: Tensor) -> Tensor:
        """Apply the linear models, without their bias, to all patches of a block.

        Parameters
        ----------
        pixels : (h + m - 1, w + m - 1, c)

        Returns
        -------
        linear : (h, w, filters)
        """
        h, w = (side - self.plan.m + 1 for side in pixels.shape[:2])
        linear = self.weights.readout.new_zeros(h, w, self.plan.filters)
        total = linear.numpy().reshape(-1)
        interior = self._run_interior(pixels, total)
        edges = {side: self._run_edge(side, interior, (h, w), total) for side in SIDES}
        self._run_corners(interior, edges, (h, w), total)
        return linear

    def _run_interior(self, pixels: Tensor, total: Flat) -> Taps:
        """Compute the interior and read it out; give its products with each layer's taps."""
        passes, m, c, layers = self._shared(), self.plan.m, self.plan.filters, self.plan.layers
        height, width, _ = pixels.shape
        sizes = [(height - 2 * k, width - 2 * k) for k in range(layers + 1)]
        taps, at_layer = self._take_taps("interior", [9 * y * x * c for y, x in sizes[:-1]])
        values = pixels.numpy().reshape(-1)
        for k, (y, x) in enumerate(sizes[:-1]):
            after = self._take(("values", k % 2), sizes[k + 1][0] * sizes[k + 1][1] * c)
            own = taps[at_layer[k] : at_layer[k + 1]]
            bias = self.bias[k * c : (k + 1) * c]
            passes.run_interior(values, self.taps[k], own, bias, after, y, x)
            values = after
        passes.read_interior(values, self.readout, total, height - m + 1, width - m + 1)
        return taps, at_layer

    def _run_edge(self, side: str, interior: Taps, size: tuple[int, int], total: Flat) -> Taps:
        """Compute an edge and read it out; give its products with each layer's taps along it."""
        m, c, layers = self.plan.m, self.plan.filters, self.plan.layers
        upright = side in ("top", "bottom")
        lines, across = size if upright else size[::-1]
        length = across + m - 1
        # Before the first layer there is no border.
        counts = [0, *(k * lines * (length - 2 * k + 2) * 3 * c for k in range(2, layers + 1))]
        taps, at_layer = self._take_taps(side, counts)
        most, room = max(1, *self.plan.products), (length + 1) * c
        arrays = (
            self._take("edge products", 3 * most * room),
            taps,
            interior[0],
            self.bias,
            self._take("edge moved", most * room),
            self._take("edge values", layers * room),
            self.readout,
            total,
        )
        self._shared().run_edge(
            upright, side in FAR, lines, length, arrays, interior[1], at_layer,
            self.edges[side], size[1],
        )  # fmt: skip
        return taps, at_layer

    def _run_corners(
        self, interior: Taps, edges: dict[str, Taps], size: tuple[int, int], total: Flat
    ) -> None:
        """Compute the corners and read them out."""
        run_corner = compile_corner(self.plan)
        most = max(1, *self.plan.products) ** 2 * ROOM * self.plan.filters
        made, moved = self._take("made", most), self._take("moved", most)
        between = self._take("between", between_size(self.plan))
        count = size[0] * size[1]
        for first in range(0, count, PATCHES):
            for vertical, horizontal in CORNERS:
                rows, columns = edges[vertical], edges[horizontal]
                run_corner(
                    vertical in FAR,
                    horizontal in FAR,
                    (first, min(PATCHES, count - first)),
                    size,
                    (made, rows[0], columns[0], interior[0], self.bias, moved, self.readout, total,
                     between),
                    (interior[1], rows[1], columns[1]),
                    self.corners[vertical, horizontal],
                )  # fmt: skip

    def _shared(self) -> Any:
        return compile_shared(self.plan)

    def _take_taps(self, name: str, counts: list[int]) -> Taps:
        at_layer = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return self._take(("taps", name), max(1, int(at_layer[-1]))), at_layer

    def _take(self, name: Any, size: int) -> Flat:
        flat: Flat = self.scratch.take(name, self.weights.readout, size).numpy()
        return flat

    def _join(self, parts: list[Tensor]) -> Flat:
        flat = [part.reshape(-1) for part in parts]
        joined: Flat = torch.cat(flat or [self.weights.readout.new_zeros(1)]).numpy()
        return joined


def _split_taps(weight: Tensor, filters: int) -> Tensor:
    """(products, ci, 3 co) -> (products, 3, ci, co)."""
    return weight.view(*weight.shape[:2], 3, filters).transpose(1, 2)
