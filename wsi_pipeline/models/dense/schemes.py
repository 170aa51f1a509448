"""Ways to compute a border convolution with few products.

In one dimension, the border of a patch after layer k is k outputs that depend on the border. They
read the k - 1 border values of the layer before (`n` here), through three taps; whatever else they
read is shared between patches and is added later. Counted from the border inwards,

    output[p] = sum over d in (-1, 0, 1) with 0 <= p + d < n of tap[d] * input[p + d],   p = 0 .. n.

A scheme turns inputs and taps into as many numbers as it has products, multiplies them pairwise,
and puts outputs together: ``output = outputs @ ((inputs @ x) * (taps @ w))``. Here x and w are not
numbers but channel vectors and 64 x 64 matrices, so each product is a matrix product, which is
where the time goes. In two dimensions (corners) a scheme is applied to rows and then to columns.

References
----------
.. [1] Toom 1963; Cook 1966; Winograd, "Arithmetic complexity of computations", 1980: multiplying
   polynomials by their values at some points.
.. [2] Lavin, Gray, "Fast algorithms for convolutional neural networks", 2016: the same for 3 x 3.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

Products = Literal["toom-cook", "direct"]

# Points at which polynomials are evaluated, in addition to infinity. Small numbers keep rounding
# errors small, since values grow with the points' powers. For six values, which lose most, i and -i
# replace two real points: one product more, a third of the error (docs/dense_patchnet.md).
POINTS = {
    2: ("0", "1", "-1"),
    3: ("0", "1", "-1", "-1/2"),
    4: ("0", "1", "-1", "2", "-1/2"),
    5: ("0", "1", "-1", "2", "-2", "-1/2"),
    6: ("0", "1", "-1", "1/2", "-1/2"),
}
AT_I = (6,)
# The same for tiles of r outputs, none of whose points need be complex.
TILE_POINTS = {
    4: ("0", "1", "-1", "2", "-2"),
    5: ("0", "1", "-1", "2", "-2", "-1/2"),
    6: ("0", "1", "-1", "2", "-2", "1/2", "-1/2"),
}

Rows = list[list[Fraction]]


@dataclass(frozen=True)
class Scheme:
    """A bilinear algorithm for n + 1 outputs of n inputs and three taps; float64."""

    inputs: Tensor  # (products, n)
    taps: Tensor  # (products, 3): taps at d = -1, 0, 1
    outputs: Tensor  # (n + 1, products)

    @property
    def products(self) -> int:
        """How many products it makes."""
        return len(self.inputs)


def direct(n: int) -> Scheme:
    """Make each product of the definition: 3 n - 1 of them, nothing lost to rounding.

    Examples
    --------
    >>> direct(6).products
    17
    """
    pairs = [(p, d) for p in range(n + 1) for d in (-1, 0, 1) if 0 <= p + d < n]
    inputs, taps = torch.zeros(len(pairs), n).double(), torch.zeros(len(pairs), 3).double()
    outputs = torch.zeros(n + 1, len(pairs)).double()
    for product, (p, d) in enumerate(pairs):
        inputs[product, p + d] = taps[product, d + 1] = outputs[p, product] = 1
    return Scheme(inputs, taps, outputs)


def toom_cook(n: int) -> Scheme:
    """Multiply polynomials by their values at n + 2 points: n + 2 products, the fewest possible.

    Inputs are coefficients of a polynomial of degree n - 1, taps of one of degree 2 (in reverse
    order); outputs are the coefficients 1 .. n + 1 of their product, of degree n + 1. Of six
    inputs, i and -i are two of the points, which costs a product more: values at them are
    conjugates, and two complex numbers are multiplied by three real products. Of a single input
    there is nothing to save.

    Examples
    --------
    >>> toom_cook(4).products, toom_cook(6).products
    (6, 9)
    """
    if n not in POINTS:
        return direct(n)
    points = [Fraction(point) for point in POINTS[n]]
    inputs, taps, outputs = (_powers(points, count) for count in (n, 3, n + 2))
    if n not in AT_I:
        return _scheme(inputs, taps, _inverse(outputs))
    inputs, taps = ([*rows, *_at_i(len(rows[0]), with_sum=True)] for rows in (inputs, taps))
    interpolate = _inverse([*outputs, *_at_i(n + 2)])
    return _scheme(inputs, taps, _multiply(interpolate, _complex_products(len(outputs))))


def _scheme(inputs: Rows, taps: Rows, coefficients: Rows) -> Scheme:
    return Scheme(_tensor(inputs), _tensor([row[::-1] for row in taps]), _tensor(coefficients[1:]))


def choose_scheme(n: int, products: Products) -> Scheme:
    """Return the scheme for n border values of the layer before."""
    return direct(n) if products == "direct" else toom_cook(n)


@dataclass(frozen=True)
class TileScheme:
    """A bilinear algorithm for r outputs of r + 2 inputs and three taps; float64.

    ``output = outputs @ ((inputs @ x) * (taps @ w))`` with ``output[p] = sum of x[p + d] w[d]``.
    """

    inputs: Tensor  # (r + 2, r + 2)
    taps: Tensor  # (r + 2, 3)
    outputs: Tensor  # (r, r + 2)

    def rows(self, name: str) -> tuple[tuple[float, ...], ...]:
        """Return the rows of a matrix as numbers."""
        return tuple(tuple(row) for row in getattr(self, name).tolist())


def tile_scheme(r: int) -> TileScheme:
    """Compute r neighbouring outputs of a convolution by r + 2 products (Winograd, see [2]).

    It is the transpose of multiplying polynomials of degrees r - 1 and 2 by their values at r + 2
    points: what made the outputs of that makes the inputs of this.

    Examples
    --------
    >>> len(tile_scheme(6).inputs)
    8
    """
    points = [Fraction(point) for point in TILE_POINTS[r]]
    outputs, taps, product = (_powers(points, count) for count in (r, 3, r + 2))
    inputs = [list(column) for column in zip(*_inverse(product), strict=True)]
    # Rows with a last coefficient of 1 have more factors of 1; the taps take the rest.
    scales = [next(value for value in reversed(row) if value) for row in inputs]
    inputs = [[v / scale for v in row] for row, scale in zip(inputs, scales, strict=True)]
    taps = [[v * scale for v in row] for row, scale in zip(taps, scales, strict=True)]
    transposed = [list(column) for column in zip(*outputs, strict=True)]
    return TileScheme(_tensor(inputs), _tensor(taps), _tensor(transposed))


def _powers(points: list[Fraction], count: int) -> Rows:
    """Values of 1, x, x^2, .. at each point, then at infinity (the last coefficient)."""
    at_infinity = [Fraction(0)] * (count - 1) + [Fraction(1)]
    return [[point**power for power in range(count)] for point in points] + [at_infinity]


def _at_i(count: int, *, with_sum: bool = False) -> Rows:
    """Real and imaginary part of 1, x, x^2, .. at i; then their sum."""
    real = [Fraction((1, 0, -1, 0)[power % 4]) for power in range(count)]
    imaginary = [Fraction((0, 1, 0, -1)[power % 4]) for power in range(count)]
    total = [a + b for a, b in zip(real, imaginary, strict=True)]
    return [real, imaginary, total] if with_sum else [real, imaginary]


def _complex_products(n_real: int) -> Rows:
    """Make values at the points out of products: `n_real` as they are, the last three by Gauss.

    (a + b i) (c + d i) = (ac - bd) + ((a + b) (c + d) - ac - bd) i.
    """
    size = n_real + 3
    rows = [[Fraction(int(i == j)) for j in range(size)] for i in range(n_real)]
    nothing = [Fraction(0)] * n_real
    rows.append([*nothing, Fraction(1), Fraction(-1), Fraction(0)])
    rows.append([*nothing, Fraction(-1), Fraction(-1), Fraction(1)])
    return rows


def _multiply(left: Rows, right: Rows) -> Rows:
    columns = list(zip(*right, strict=True))
    return [
        [sum((a * b for a, b in zip(row, c, strict=True)), Fraction(0)) for c in columns]
        for row in left
    ]


def _inverse(matrix: Rows) -> Rows:
    """Invert exactly, by Gauss and Jordan."""
    size = len(matrix)
    rows = [row + [Fraction(int(i == j)) for j in range(size)] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = next(r for r in range(column, size) if rows[r][column] != 0)
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for r in range(size):
            if r != column:
                factor = rows[r][column]
                rows[r] = [a - factor * b for a, b in zip(rows[r], rows[column], strict=True)]
    return [row[size:] for row in rows]


def _tensor(rows: Rows) -> Tensor:
    return torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)
