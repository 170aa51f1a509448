"""Corners on a CPU: everything between two matrix products in one compiled pass (numba).

In plain torch the products of a layer's corners are written to memory, transformed along rows,
along columns, added to, cut at zero, transformed twice more, and each step reads and writes them
all. Here one patch's values stay in the innermost cache from one product to the next. Only the
matrix products are left to torch.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_pipeline.models.dense.regions import Border, Shared
from wsi_pipeline.models.dense.schemes import Scheme
from wsi_pipeline.models.dense.scratch import Scratch
from wsi_pipeline.models.dense.weights import CORNERS, FAR, DenseWeights

PATCHES = 128  # at once: their products stay in the outer caches
ROWS = PATCHES + 1  # an odd number, so that the products of one patch do not share cache sets

# Indices are unsigned: a signed one may be negative, and that question per value forbids vectors.
U = np.uint64
Flat = NDArray[Any]
Matrix = tuple[tuple[float, ...], ...]

_compile: Callable[..., Any] = numba.njit(
    fastmath={"contract", "reassoc"}, error_model="numpy", nogil=True
)


class CompiledCorners:
    """The corners of a block's patches; the same as `regions.TorchCorners`."""

    def __init__(self, weights: DenseWeights, size: tuple[int, int], scratch: Scratch) -> None:
        self.scratch = scratch
        self.weights = weights
        self.size = size  # (h, w) patches
        self.k = 0
        count = size[0] * size[1]
        self.total = weights.readout.new_zeros(count * weights.filters).numpy()
        self.chunks = [(first, min(PATCHES, count - first)) for first in range(0, count, PATCHES)]
        self.moved: dict[tuple[str, str], list[Tensor]] = {}

    def advance(self, shared: Shared, borders: dict[str, Border]) -> None:
        """Go on by one layer."""
        k = self.k + 1
        layer = self.weights.split[k - 1]
        following = self.weights.split[k].scheme if k < len(self.weights.split) else None
        filters = self.weights.filters
        bias = layer.bias.numpy()
        step = corner_step(k, _key(layer.scheme), _key(following), filters, bias.dtype.name)
        products = 0 if layer.scheme is None else layer.scheme.products
        made = self.scratch.take("products", layer.bias, products**2, ROWS, filters)
        interior = shared.interior.numpy().reshape(-1)
        edges = {side: edge.numpy().reshape(-1) for side, edge in shared.edges.items()}
        along = {side: edge.shape[2] for side, edge in shared.edges.items()}
        nothing = np.zeros(1, bias.dtype)
        moved: dict[tuple[str, str], list[Tensor]] = {}
        for corner in CORNERS:
            vertical, horizontal = corner
            y, x = borders[vertical], borders[horizontal]
            weight = self._readout(corner, k)
            moved[corner] = []
            for number, (first, count) in enumerate(self.chunks):
                if layer.scheme is not None:
                    torch.bmm(self.moved[corner][number], layer.corners[corner], out=made)
                after = made[:0]
                if following is not None:
                    shape = (following.products**2, ROWS, filters)
                    name = (corner, number, k % 2)
                    after = self.scratch.take(name, layer.bias, *shape)
                step(
                    made.numpy().reshape(-1),
                    (edges.get(vertical, nothing), edges.get(horizontal, nothing)),
                    (U(along.get(vertical, 0)), U(along.get(horizontal, 0))),
                    interior,
                    U(shared.interior.shape[1]),
                    (U(y.near), U(y.inner), U(y.tap), U(x.near), U(x.inner), U(x.tap)),
                    bias,
                    (U(first), U(count), U(self.size[0]), U(self.size[1])),
                    after.numpy().reshape(-1),
                    weight,
                    self.total,
                )
                moved[corner].append(after)
        self.moved, self.k = moved, k

    def read_out(self) -> Tensor:
        """Give the corners' part of the linear models: (h, w, filters)."""
        return torch.from_numpy(self.total).view(*self.size, -1)

    def _readout(self, corner: tuple[str, str], k: int) -> Flat:
        """Give the linear models' weights of a corner, from the outside inwards; flat."""
        weight = self.weights.readout
        weight = weight.flip(0) if corner[0] in FAR else weight
        weight = weight.flip(1) if corner[1] in FAR else weight
        flat: Flat = weight[:k, :k].contiguous().numpy().reshape(-1)
        return flat


def _key(scheme: Scheme | None) -> tuple[Matrix, Matrix] | None:
    """Give the matrices of a scheme as a value that a cache can look up."""
    if scheme is None:
        return None
    inputs, outputs = (
        tuple(tuple(row) for row in matrix.tolist()) for matrix in (scheme.inputs, scheme.outputs)
    )
    return inputs, outputs


def write_transform(matrix: Matrix, step_from: int, step_to: int, length: int, dtype: str) -> Any:
    """Compile the product of a fixed matrix with rows of numbers, term by term.

    Writing each sum out, with its zeros left out and its ones not multiplied, is what lets the
    compiler keep all rows in registers.

    Parameters
    ----------
    matrix : (rows out, rows in)
    step_from, step_to : int
        Numbers from one row to the next, in the source and the target.
    length : int
        Numbers in a row.
    dtype : str

    Returns
    -------
    transform : callable
        ``transform(source, first, target, first)``, both flat.
    """
    lines = ["def transform(source, s, target, t):", f"    for c in range(U({length})):"]
    for column in range(len(matrix[0])):
        lines.append(f"        x{column} = source[s + U({column * step_from}) + c]")
    for row, values in enumerate(matrix):
        terms = [
            ("-" if value < 0 else "+")
            + (f"x{column}" if abs(value) == 1 else f"F({abs(value)!r}) * x{column}")
            for column, value in enumerate(values)
            if value
        ]
        lines.append(f"        target[t + U({row * step_to}) + c] = {' '.join(terms)}")
    names: dict[str, Any] = {"U": U, "F": getattr(np, dtype)}
    exec("\n".join(lines), names)  # only numbers of our own schemes come into the text
    return _compile(names["transform"])


@_compile
def _add(values: Flat, at: int, source: Flat, first: int, second: int, length: int) -> None:
    for c in range(length):
        values[at + c] += source[first + c] + source[second + c]


@_compile
def _add_one(values: Flat, at: int, source: Flat, first: int, length: int) -> None:
    for c in range(length):
        values[at + c] += source[first + c]


@_compile
def _rectify(values: Flat, at: int, bias: Flat, length: int) -> None:
    for c in range(length):
        value = values[at + c] + bias[c]
        values[at + c] = 0 if value < 0 else value  # NaN stays NaN


@_compile
def _accumulate(total: Flat, at: int, values: Flat, weight: Flat, first: int, length: int) -> None:
    for c in range(length):
        total[at + c] += values[first + c] * weight[first + c]


@_compile
def _nothing(source: Flat, s: int, target: Flat, t: int) -> None:
    return


@cache
def corner_step(
    k: int,
    scheme: tuple[Matrix, Matrix] | None,
    following: tuple[Matrix, Matrix] | None,
    filters: int,
    dtype: str,
) -> Any:
    """Compile what happens to a corner between the products of layer k and those of the next.

    The products are put together, the shared parts and the bias added, negative values cut, and
    the result is made ready for the next products or read out by the linear models.
    """
    c, number = filters, getattr(np, dtype)
    out_rows = out_columns = in_rows = in_columns = _nothing
    products = after = 1
    if scheme is not None:
        products = len(scheme[0])
        out_rows = write_transform(scheme[1], products * ROWS * c, products * c, c, dtype)
        out_columns = write_transform(scheme[1], c, c, c, dtype)
    if following is not None:
        after = len(following[0])
        in_columns = write_transform(following[0], c, c, c, dtype)
        in_rows = write_transform(following[0], after * c, after * ROWS * c, c, dtype)
    has_before, has_after, has_edges = scheme is not None, following is not None, k > 1
    one, c1 = U(1), U(c)
    kk, pp, aa, rr = U(k), U(products), U(after), U(ROWS)
    last, previous = U(k - 1), U(max(k - 2, 0))
    scratch = k * max(products, after) * c

    @_compile
    def add_edges(values, edges, along, i, j, h, w, y_near, y_inner, y_tap, x_near, x_inner, x_tap):  # type: ignore[no-untyped-def]
        three = U(3)
        for p in range(kk):
            base = (p * h + i) * along[0]
            near, inner = (base + j + x_near) * three, (base + j + x_inner) * three
            at = (p * kk + last) * c1
            _add(values, at, edges[0], (near + one) * c1, (inner + x_tap) * c1, c1)
            _add_one(values, (p * kk + previous) * c1, edges[0], (near + x_tap) * c1, c1)
        for q in range(kk):
            base = (q * w + j) * along[1]
            near, inner = (base + i + y_near) * three, (base + i + y_inner) * three
            at = (last * kk + q) * c1
            _add(values, at, edges[1], (near + one) * c1, (inner + y_tap) * c1, c1)
            _add_one(values, (previous * kk + q) * c1, edges[1], (near + y_tap) * c1, c1)

    @_compile
    def add_interior(values, taps, width, i, j, y_near, y_inner, y_tap, x_near, x_inner, x_tap):  # type: ignore[no-untyped-def]
        nine, three = U(9), U(3)
        near_y, inner_y = (i + y_near) * width, (i + y_inner) * width
        near_x, inner_x = j + x_near, j + x_inner
        # (row, column) of the interior and (dy, dx) of the tap, as one index
        nn, ni = (near_y + near_x) * nine, (near_y + inner_x) * nine
        im, ii = (inner_y + near_x) * nine, (inner_y + inner_x) * nine
        y1, y2 = three, y_tap * three
        corner = (last * kk + last) * c1
        _add(values, corner, taps, (nn + y1 + one) * c1, (ni + y1 + x_tap) * c1, c1)
        _add(values, corner, taps, (im + y2 + one) * c1, (ii + y2 + x_tap) * c1, c1)
        if has_edges:
            at = (last * kk + previous) * c1
            _add(values, at, taps, (nn + y1 + x_tap) * c1, (im + y2 + x_tap) * c1, c1)
            at = (previous * kk + last) * c1
            _add(values, at, taps, (nn + y2 + one) * c1, (ni + y2 + x_tap) * c1, c1)
            at = (previous * kk + previous) * c1
            _add_one(values, at, taps, (nn + y2 + x_tap) * c1, c1)

    @_compile
    def step(made, edges, along, interior, width, border, bias, patches, moved, weight, total):  # type: ignore[no-untyped-def]
        first, count, h, w = patches
        y_near, y_inner, y_tap, x_near, x_inner, x_tap = border
        values = np.zeros(k * k * c, number)
        between = np.zeros(scratch, number)
        for n in range(count):
            i, j = (first + n) // w, (first + n) % w
            if has_before:
                for b in range(pp):
                    out_rows(made, (b * rr + n) * c1, between, b * c1)
                for p in range(kk):
                    out_columns(between, p * pp * c1, values, p * kk * c1)
            else:
                values[:] = 0
            if has_edges:
                add_edges(
                    values, edges, along, i, j, h, w,
                    y_near, y_inner, y_tap, x_near, x_inner, x_tap,
                )  # fmt: skip
            add_interior(
                values, interior, width, i, j, y_near, y_inner, y_tap, x_near, x_inner, x_tap
            )
            for at in range(kk * kk):
                _rectify(values, at * c1, bias, c1)
            if has_after:
                for p in range(kk):
                    in_columns(values, p * kk * c1, between, p * aa * c1)
                for b in range(aa):
                    in_rows(between, b * c1, moved, (b * rr + n) * c1)
            else:
                for at in range(kk * kk):
                    _accumulate(total, (first + n) * c1, values, weight, at * c1, c1)

    return step
