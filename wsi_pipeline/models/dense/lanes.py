"""Straight-line vector code for the passes between matrix products.

The transforms of `schemes` are small fixed matrices, applied to rows of channels. Written out
term by term, on some neighbouring channels at a time, all their values stay in registers. A
compiler that is given loops does not find that; so the instructions are written here, by Python
loops that run once, while numba compiles (`compiled`).

A value in this module is an instruction's result: `lanes` neighbouring channels of one map.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

Matrix = tuple[tuple[float, ...], ...]
Value = Any  # of llvmlite, which is not typed

_INDEX = ir.IntType(64)
_FLAGS = ("contract", "nsz")  # products and sums may become one instruction


class Lanes:
    """Writes instructions on `lanes` numbers at a time."""

    def __init__(self, builder: Value, number: Value, lanes: int) -> None:
        self.builder = builder
        self.vector = ir.VectorType(number, lanes)
        self.size = 4 if isinstance(number, ir.FloatType) else 8  # bytes of a number

    def load(self, array: Value, *index: Value | int) -> Value:
        """Read from a flat array, at the sum of some indices."""
        return self.builder.load(self._at(array, index), align=self.size)

    def broadcast(self, array: Value, *index: Value | int) -> Value:
        """Read one number, at the sum of some indices, into every channel."""
        number = self.builder.load(self._pointer(array, index))
        one = self.builder.insert_element(
            ir.Constant(self.vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0)
        )
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), self.vector.count), None)
        return self.builder.shuffle_vector(one, one, everywhere)

    def store(self, value: Value, array: Value, *index: Value | int) -> None:
        """Write to a flat array, at the sum of some indices."""
        self.builder.store(value, self._at(array, index), align=self.size)

    def add(self, first: Value, *others: Value) -> Value:
        """Sum values."""
        for other in others:
            first = self.builder.fadd(first, other, flags=_FLAGS)
        return first

    def multiply_add(self, total: Value, first: Value, second: Value) -> Value:
        """Return total + first * second."""
        return self.add(total, self.builder.fmul(first, second, flags=_FLAGS))

    def rectify(self, value: Value) -> Value:
        """Return max(value, 0); NaN stays NaN."""
        zero = ir.Constant(self.vector, None)
        return self.builder.select(self.builder.fcmp_ordered("<", value, zero), zero, value)

    def transform(self, matrix: Matrix, values: Sequence[Value]) -> list[Value]:
        """Multiply a fixed matrix by a column of values.

        Points come as t and -t. So two rows of `inputs` differ by the sign of their odd terms
        only, and likewise two columns of `outputs`: with sums and differences made first, half
        of the products are left.
        """
        values, matrix = self._fold_columns(matrix, values)
        done: dict[int, Value] = {}
        for row in range(len(matrix)):
            if row in done:
                continue
            twin = _find_twin(matrix, row)
            if twin is None:
                done[row] = self._sum(matrix[row], values)
                continue
            same = [a if a == b else 0.0 for a, b in zip(matrix[row], matrix[twin], strict=True)]
            opposite = [a - b for a, b in zip(matrix[row], same, strict=True)]
            even, odd = self._sum(same, values), self._sum(opposite, values)
            done[row] = self.builder.fadd(even, odd, flags=_FLAGS)
            done[twin] = self.builder.fsub(even, odd, flags=_FLAGS)
        return [done[row] for row in range(len(matrix))]

    def _fold_columns(self, matrix: Matrix, values: Sequence[Value]) -> tuple[list[Value], Matrix]:
        """Replace twin columns by the sum and the difference of their values."""
        columns = list(zip(*matrix, strict=True))
        folded_values, folded = list(values), [list(column) for column in columns]
        done: set[int] = set()
        for first in range(len(columns)):
            second = _find_twin(columns, first)
            if second is None or first in done or second in done:
                continue
            done |= {first, second}
            a, b = values[first], values[second]
            folded_values[first] = self.builder.fadd(a, b, flags=_FLAGS)
            folded_values[second] = self.builder.fsub(a, b, flags=_FLAGS)
            for row, (x, y) in enumerate(zip(columns[first], columns[second], strict=True)):
                folded[first][row], folded[second][row] = (x, 0.0) if x == y else (0.0, x)
        return folded_values, tuple(zip(*folded, strict=True))

    def _sum(self, factors: Sequence[float], values: Sequence[Value]) -> Value:
        """Sum factors times values; zeros left out, ones not multiplied."""
        total = None
        # A term that need not be negated comes first.
        terms = sorted(
            ((f, v) for f, v in zip(factors, values, strict=True) if f),
            key=lambda term: term[0] != 1,
        )
        for factor, value in terms:
            if abs(factor) != 1:
                constant = ir.Constant(self.vector, [abs(factor)] * self.vector.count)
                value = self.builder.fmul(value, constant, flags=_FLAGS)
            if total is None:
                total = value if factor > 0 else self.builder.fneg(value, flags=_FLAGS)
            elif factor > 0:
                total = self.builder.fadd(total, value, flags=_FLAGS)
            else:
                total = self.builder.fsub(total, value, flags=_FLAGS)
        return ir.Constant(self.vector, None) if total is None else total

    def _at(self, array: Value, index: Sequence[Value | int]) -> Value:
        return self.builder.bitcast(self._pointer(array, index), self.vector.as_pointer())

    def _pointer(self, array: Value, index: Sequence[Value | int]) -> Value:
        total = None
        for part in index:
            part = ir.Constant(_INDEX, part) if isinstance(part, int) else part
            total = part if total is None else self.builder.add(total, part)
        return self.builder.gep(array, [total])

    def times(self, index: Value, count: int) -> Value:
        """Multiply an index by a constant."""
        return self.builder.mul(index, ir.Constant(_INDEX, count))


def _find_twin(rows: Sequence[Sequence[float]], index: int) -> int | None:
    """Find the row that is equal but for some signs, and has at least two terms."""
    size = [abs(value) for value in rows[index]]
    signs_differ = [
        other
        for other, row in enumerate(rows)
        if [abs(value) for value in row] == size and tuple(row) != tuple(rows[index])
    ]
    return signs_differ[0] if len(signs_differ) == 1 and sum(map(bool, size)) > 1 else None


def layered(lanes: int, writers: dict[int, Callable[..., None]]) -> Any:
    """Make a numba function of straight-line code, another one for each layer.

    Parameters
    ----------
    lanes : int
        Channels at a time.
    writers : layer -> callable
        ``write(lanes, arrays, at)`` writes the layer's code, for flat arrays and indices into
        them.

    Returns
    -------
    function : numba intrinsic
        ``function(layer, arrays, at)``: a tuple of flat arrays of one dtype, a tuple of integers.
    """

    unpack: Callable[..., list[Value]] = cgutils.unpack_tuple

    @intrinsic
    def function(typing: Any, layer: Any, arrays: Any, at: Any) -> Any:
        def write(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            kind = arrays.dtype
            flat = [
                context.make_array(kind)(context, builder, value).data
                for value in unpack(builder, values[1], len(arrays))
            ]
            index = unpack(builder, values[2], len(at))
            end = builder.append_basic_block("end")
            switch = builder.switch(values[0], end)
            for number, write_layer in writers.items():
                block = builder.append_basic_block(f"layer{number}")
                switch.add_case(ir.Constant(values[0].type, number), block)
                with builder.goto_block(block):
                    number_type = context.get_value_type(kind.dtype)
                    write_layer(Lanes(builder, number_type, lanes), flat, index)
                    builder.branch(end)
            builder.position_at_end(end)
            return context.get_dummy_value()

        return types.void(layer, arrays, at), write

    return function
