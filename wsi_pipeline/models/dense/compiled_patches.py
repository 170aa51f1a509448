"""Patches one by one on a CPU, by fast convolutions that numba compiles.

Where patches are far apart (`stride` of several px), they share little: 1.5 times fewer values for
m = 17 and a stride of 5. What is left to save are products. Each layer's map is cut into tiles of
r x r outputs, each computed by (r + 2)^2 products of 64 x 64 matrices instead of 9 r^2 (Winograd
[1]). Between the products of two layers, the values of 16 channels of a patch stay in the innermost
cache. Borders cost nothing: a patch's tiles are read from a map with zeros around it.

References
----------
.. [1] Lavin, Gray, "Fast algorithms for convolutional neural networks", 2016: F(r x r, 3 x 3).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from wsi_pipeline.models.dense.compiled_shared import write_accumulate
from wsi_pipeline.models.dense.costs import best_tile
from wsi_pipeline.models.dense.lanes import Lanes, Matrix, Value, layered
from wsi_pipeline.models.dense.plan import WIDE, compile_function, count_lanes
from wsi_pipeline.models.dense.schemes import TileScheme, tile_scheme

Flat = NDArray[Any]

ROWS = 6  # of a product that stay in registers
UNROLLED = 4  # columns of a product's left side per turn of its loop, where they go into it
HELD_BYTES = 2**19  # values of some patches between layers: a core's second cache
PATCHES_PER_THREAD = 64  # at least, for a thread to be worth its start


@dataclass(frozen=True)
class PatchPlan:
    """All that the compiled code depends on; its key in the cache."""

    m: int  # side of a patch, px
    channels: int
    filters: int
    layers: int
    dtype: str
    tile: int  # outputs each way

    @classmethod
    def of(cls, m: int, convolutions: list[nn.Conv2d]) -> "PatchPlan":
        """Return the plan with the fewest products."""
        first = convolutions[0]
        return cls(
            m=m,
            channels=first.in_channels,
            filters=first.out_channels,
            layers=len(convolutions),
            dtype=first.weight.detach().cpu().numpy().dtype.name,
            tile=best_tile(m),
        )

    @property
    def tiles(self) -> int:
        """Tiles each way."""
        return -(-self.m // self.tile)

    @property
    def points(self) -> int:
        """Products of a tile, each way."""
        return self.tile + 2

    @property
    def side(self) -> int:
        """Side of a map with the zeros around it."""
        return self.tiles * self.tile + 2

    @property
    def lanes(self) -> int:
        """Channels at a time."""
        return count_lanes(self.filters, self.dtype)

    @property
    def patches(self) -> int:
        """Patches that go through all layers together."""
        a_row = self.points**2 * self.filters * np.dtype(self.dtype).itemsize
        most = max(1, HELD_BYTES // (a_row * self.tiles**2))
        return min(range(1, most + 1), key=lambda n: _fill(n * self.tiles**2) / n)

    @property
    def rows(self) -> int:
        """Rows of a product: one for each tile, and some to fill the registers."""
        return _fill(self.patches * self.tiles**2)

    @property
    def step(self) -> int:
        """Numbers from one point's rows to the next one's; a step of 64 lines shares cache sets."""
        return self.rows * self.filters + self.lanes

    @property
    def taps(self) -> int:
        """Inputs of a pixel of the first layer, filled up for the unrolled product."""
        return -(-9 * self.channels // self.unrolled) * self.unrolled

    @property
    def unrolled(self) -> int:
        """Columns of a product's left side per turn of its loop."""
        return 1 if self.filters % UNROLLED else UNROLLED


def _fill(rows: int) -> int:
    return -(-rows // ROWS) * ROWS


class CompiledPatches:
    """A subnet, ready to be evaluated on any patches of an image.

    Compiles, once per process and kind of network, when the first patches are mapped.

    Parameters
    ----------
    convolutions : list of Conv2d
        3 x 3, padding 1, each followed by a ReLU.
    readout : (m, m, filters)
    """

    def __init__(self, convolutions: list[nn.Conv2d], readout: Tensor) -> None:
        self.plan = plan = PatchPlan.of(readout.shape[0], convolutions)
        first, *others = (conv.weight.detach() for conv in convolutions)
        taps = first.permute(2, 3, 1, 0).reshape(1, -1, plan.filters)
        taps = F.pad(taps, (0, 0, 0, plan.taps - taps.shape[1]))
        self._first = _by_columns(taps, plan).reshape(-1).numpy()
        points = tile_scheme(plan.tile).taps
        moved = [
            torch.einsum("ay,bx,oiyx->abio", points, points, w.double()).flatten(0, 1)
            for w in others
        ]
        flat = [_by_columns(weight.to(first.dtype), plan).reshape(-1) for weight in moved]
        self._weights = torch.cat([*flat, first.new_zeros(1)]).numpy()
        biases = [
            conv.weight.new_zeros(plan.filters) if conv.bias is None else conv.bias.detach()
            for conv in convolutions
        ]
        self._bias = torch.cat(biases).numpy()
        self._readout = np.ascontiguousarray(readout.detach().numpy()).reshape(-1)

    def map_patches(self, pixels: Tensor, tops: NDArray[np.int64], lefts: Flat) -> Tensor:
        """Apply the linear models, without their bias, to some patches.

        Parameters
        ----------
        pixels : (c, H, W)
        tops, lefts : (n,) px
            Top-left corners of the patches, all of them inside.

        Returns
        -------
        linear : (n, filters)
        """
        plan = self.plan
        count = len(tops)
        linear = np.zeros((count, plan.filters), plan.dtype)
        flat = pixels.permute(1, 2, 0).contiguous().numpy().reshape(-1)
        width = pixels.shape[2]
        run = compile_patches(plan)

        def work(start: int, stop: int) -> None:
            size = plan.points**2 * plan.step
            columns = _fill(plan.m**2)
            run(
                (flat, self._first, self._weights, self._bias, self._readout),
                width,
                tops[start:stop],
                lefts[start:stop],
                linear[start:stop].reshape(-1),
                (
                    np.zeros((plan.m + 2) ** 2 * plan.channels, plan.dtype),
                    np.zeros(columns * plan.taps, plan.dtype),
                    np.zeros(columns * plan.filters, plan.dtype),
                    np.zeros(size, plan.dtype),
                    np.zeros(plan.rows * plan.filters, plan.dtype),
                    np.zeros(plan.side**2 * plan.lanes, plan.dtype),
                    np.zeros(plan.points**2 * plan.lanes, plan.dtype),
                ),
            )

        threads = max(1, min(torch.get_num_threads(), count // PATCHES_PER_THREAD))
        edges = [count * part // threads for part in range(threads + 1)]
        if threads == 1:
            work(0, count)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(work, edges[:-1], edges[1:]))
        return torch.from_numpy(linear)


@cache
def compile_patches(plan: PatchPlan) -> Callable[..., None]:
    """Compile `run_patches`."""
    m, c, lanes, ci = plan.m, plan.filters, plan.lanes, plan.channels
    side, tile, tiles, points, rows = plan.side, plan.tile, plan.tiles, plan.points, plan.rows
    layers, patches, per_patch, step = plan.layers, plan.patches, plan.tiles**2, plan.step
    taps, padded = plan.taps, (m + 2) * ci  # inputs of a pixel; of a row with its borders
    across = _vectors_across(plan)
    width_made = across * lanes
    scheme = tile_scheme(tile)
    multiply = layered(lanes, {0: _multiply_writer(across, plan.unrolled)})
    rectify = layered(lanes, {0: _write_rectified})
    split = layered(lanes, {0: _split_writer(plan, scheme)})
    join = layered(lanes, {0: _join_writer(plan, scheme)})
    accumulate = layered(lanes, {0: write_accumulate})

    @compile_function
    def gather(pixels, width, top, left, around, columns):  # type: ignore[no-untyped-def]
        """Write the 3 x 3 neighbours of each pixel of a patch; zeros beyond it."""
        for u in range(m):
            source, to = ((top + u) * width + left) * ci, (u + 1) * padded + ci
            for index in range(m * ci):
                around[to + index] = pixels[source + index]
        for u in range(m):
            for v in range(m):
                to = (u * m + v) * taps
                for dy in range(3):
                    source = (u + dy) * padded + v * ci
                    for index in range(3 * ci):
                        columns[to + dy * 3 * ci + index] = around[source + index]

    @compile_function
    def multiply_points(values, weights, first_weight, staged):  # type: ignore[no-untyped-def]
        """Multiply the values at each point by its matrix, in place."""
        for point in range(points * points):
            at = point * step
            for index in range(rows * c):
                staged[index] = values[at + index]
            for v in range(0, c, width_made):
                weight = first_weight + (point * c + v) * c
                for row in range(0, rows, ROWS):
                    multiply(
                        0, (staged, weights, values), (row * c, c, weight, at + row * c + v, c)
                    )

    @compile_function
    def clear_excess(held):  # type: ignore[no-untyped-def]
        """Make zeros of what the last tiles have beyond the patch."""
        for u in range(1, side - 1):
            first = 1 if u > m else m + 1
            held[(u * side + first) * lanes : (u * side + side - 1) * lanes] = 0

    @compile_function
    def read_out(held, readout, total, v, to):  # type: ignore[no-untyped-def]
        """Add the weighted sum of a patch's map."""
        for u in range(m):
            at = ((u + 1) * side + 1) * lanes
            accumulate(0, (held, readout, total), (at, lanes, u * m * c + v, c, m, to))

    @compile_function
    def hand_on(  # type: ignore[no-untyped-def]
        is_last, held, values, between, readout, total, start, n, v
    ):
        """Read out a patch's map after the last layer, else split it for the next one."""
        if is_last:
            read_out(held, readout, total, v, (start + n) * c + v)
        else:
            for t in range(per_patch):
                at = (t // tiles * tile * side + t % tiles * tile) * lanes
                split(0, (held, values, between), (at, (n * per_patch + t) * c + v))

    @compile_function
    def run_patches(inputs, width, tops, lefts, total, scratch):  # type: ignore[no-untyped-def]
        """Take patches through all layers, some at a time."""
        pixels, first, weights, bias, readout = inputs
        around, columns, made, values, staged, held, between = scratch
        for start in range(0, len(tops), patches):
            count = min(patches, len(tops) - start)
            for n in range(count):
                gather(pixels, width, tops[start + n], lefts[start + n], around, columns)
                for row in range(0, m * m, ROWS):
                    for v in range(0, c, width_made):
                        place = (row * taps, taps, v * taps, row * c + v, c)
                        multiply(0, (columns, first, made), place)
                for v in range(0, c, lanes):
                    for u in range(m):
                        for x in range(m):
                            to = ((u + 1) * side + x + 1) * lanes
                            rectify(0, (made, bias, held), ((u * m + x) * c + v, v, to))
                    hand_on(layers == 1, held, values, between, readout, total, start, n, v)
            for layer in range(1, layers):
                multiply_points(values, weights, (layer - 1) * points * points * c * c, staged)
                for n in range(count):
                    for v in range(0, c, lanes):
                        for t in range(per_patch):
                            at = (t // tiles * tile * side + t % tiles * tile) * lanes
                            row = n * per_patch + t
                            to = at + (side + 1) * lanes
                            join(0, (values, bias, held, between), (row * c + v, layer * c + v, to))
                        clear_excess(held)
                        is_last = layer == layers - 1
                        hand_on(is_last, held, values, between, readout, total, start, n, v)

    compiled: Callable[..., None] = run_patches
    return compiled


def _vectors_across(plan: PatchPlan) -> int:
    """Vectors of a product's row that fit into registers, `ROWS` times, with some to spare."""
    most = 4 if WIDE else 2
    count = plan.filters // plan.lanes
    return next(n for n in range(most, 0, -1) if count % n == 0)


def _by_columns(weights: Tensor, plan: PatchPlan) -> Tensor:
    """Put what a product reads one after the other: (n, ci, co) -> (n, blocks, ci, width)."""
    width = _vectors_across(plan) * plan.lanes
    blocks: Tensor = weights.unflatten(2, (-1, width))
    return blocks.transpose(1, 2).contiguous()


def _multiply_writer(across: int, unrolled: int) -> Callable[..., None]:
    """Some rows of a product, all of whose sums stay in registers."""

    def write(to: Lanes, arrays: list[Value], at: list[Value]) -> None:
        rows, weights, made = arrays
        rows_at, length, weight_at, made_at, made_step = at
        zero = ir.Constant(to.vector, None)
        places = list(product(range(ROWS), range(across)))
        held: Callable[..., Value] = cgutils.alloca_once_value
        sums = {place: held(to.builder, zero) for place in places}
        for place in places:
            to.builder.store(zero, sums[place])  # the first one is made once for the whole function
        width = across * to.vector.count
        turns = to.builder.udiv(length, ir.Constant(length.type, unrolled))
        with cgutils.for_range(to.builder, turns) as loop:
            first = to.times(loop.index, unrolled)
            for turn in range(unrolled):
                line = to.times(first, width)
                own = [
                    to.load(weights, weight_at, line, turn * width + v * to.vector.count)
                    for v in range(across)
                ]
                for row in range(ROWS):
                    value = to.broadcast(rows, rows_at, to.times(length, row), first, turn)
                    for v in range(across):
                        total = to.builder.load(sums[row, v])
                        to.builder.store(to.multiply_add(total, value, own[v]), sums[row, v])
        for row, v in places:
            place = (to.times(made_step, row), v * to.vector.count)
            to.store(to.builder.load(sums[row, v]), made, made_at, *place)

    return write


def _write_rectified(to: Lanes, arrays: list[Value], at: list[Value]) -> None:
    made, bias, held = arrays
    made_at, bias_at, held_at = at
    to.store(to.rectify(to.add(to.load(made, made_at), to.load(bias, bias_at))), held, held_at)


def _split_writer(plan: PatchPlan, scheme: TileScheme) -> Callable[..., None]:
    """One tile, with its neighbours, to its values at all points."""
    lanes, side, points = plan.lanes, plan.side, plan.points
    matrix = scheme.rows("inputs")

    def write(to: Lanes, arrays: list[Value], at: list[Value]) -> None:
        held, values, between = arrays
        held_at, values_at = at
        for x in range(points):
            column = [to.load(held, held_at, (y * side + x) * lanes) for y in range(points)]
            for a, value in enumerate(to.transform(matrix, column)):
                to.store(value, between, (a * points + x) * lanes)
        for a in range(points):
            row = [to.load(between, (a * points + x) * lanes) for x in range(points)]
            for b, value in enumerate(to.transform(matrix, row)):
                to.store(value, values, values_at, _value_step(plan, a * points + b))

    return write


def _join_writer(plan: PatchPlan, scheme: TileScheme) -> Callable[..., None]:
    """The products of a tile to its outputs, with bias and ReLU."""
    lanes, side, points, tile = plan.lanes, plan.side, plan.points, plan.tile
    matrix: Matrix = scheme.rows("outputs")

    def write(to: Lanes, arrays: list[Value], at: list[Value]) -> None:
        values, bias, held, between = arrays
        values_at, bias_at, held_at = at
        for b in range(points):
            column = [
                to.load(values, values_at, _value_step(plan, a * points + b)) for a in range(points)
            ]
            for y, value in enumerate(to.transform(matrix, column)):
                to.store(value, between, (y * points + b) * lanes)
        added = to.load(bias, bias_at)
        for y in range(tile):
            row = [to.load(between, (y * points + b) * lanes) for b in range(points)]
            for x, value in enumerate(to.transform(matrix, row)):
                to.store(to.rectify(to.add(value, added)), held, held_at, (y * side + x) * lanes)

    return write


def _value_step(plan: PatchPlan, point: int) -> int:
    return point * plan.step
