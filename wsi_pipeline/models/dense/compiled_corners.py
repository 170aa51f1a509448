"""A corner of some patches, compiled: through all layers and into the linear models."""

from functools import cache
from typing import Any

import numpy as np

from wsi_pipeline.models.dense.lanes import Lanes, Value, layered
from wsi_pipeline.models.dense.plan import ROOM, Plan, compile_function


@cache
def compile_corner(plan: Plan) -> Any:
    """Compile `run_corner`."""
    c, lanes, m, layers, products = plan.filters, plan.lanes, plan.m, plan.layers, plan.products
    corner_pass = layered(lanes, {k: _corner_writer(plan, k) for k in range(1, layers + 1)})

    @compile_function
    def run_corner(far_y, far_x, patches, size, arrays, at_layers, weights):  # type: ignore[no-untyped-def]
        """Take one corner of patches first .. first + count, of h x w, through all layers.

        The edges of the corner's two sides, their taps: first the one whose lines are rows of
        patches. Taps of the interior and of both edges begin at `at_layers`.
        """
        (first, count), (h, w) = patches, size
        made, rows, columns, interior, bias, moved, readout, total, between = arrays
        interior_at, rows_at, columns_at = at_layers
        first_weight = 0
        for k in range(1, layers + 1):
            for product in range(products[k - 1] ** 2):
                at, weight = product * ROOM * c, first_weight + product * c * c
                np.dot(
                    moved[at : at + count * c].reshape(count, c),
                    weights[weight : weight + c * c].reshape(c, c),
                    made[at : at + count * c].reshape(count, c),
                )
            first_weight += products[k - 1] ** 2 * c * c
            # See `regions.Border`.
            near_y, inner_y, in_y = (m - 2 * k + 1, m - 2 * k, 0) if far_y else (0, 1, 2)
            near_x, inner_x, in_x = (m - 2 * k + 1, m - 2 * k, 0) if far_x else (0, 1, 2)
            height, width = h + m + 1 - 2 * k, w + m + 1 - 2 * k
            plane, step, start = height * width * c, k * 3 * c, interior_at[k - 1]
            row_weight, column_weight = (-m * c if far_y else m * c), (-c if far_x else c)
            weight = ((m - 1) * m * c if far_y else 0) + ((m - 1) * c if far_x else 0)
            for n in range(count):
                i, j = (first + n) // w, (first + n) % w
                row_near = rows_at[k - 1] + (i * width + j + near_x) * step
                row_inner = rows_at[k - 1] + (i * width + j + inner_x) * step
                column_near = columns_at[k - 1] + ((i + near_y) * w + j) * step
                column_inner = columns_at[k - 1] + ((i + inner_y) * w + j) * step
                near, inner = (i + near_y) * width + j, (i + inner_y) * width + j
                for v in range(0, c, lanes):
                    corner_pass(
                        k,
                        (made, rows, columns, interior, bias, moved, readout, total, between),
                        (
                            n * c + v,
                            row_near + c + v,
                            row_inner + in_x * c + v,
                            row_near + in_x * c + v,
                            column_near + c + v,
                            column_inner + in_y * c + v,
                            column_near + in_y * c + v,
                            start + 4 * plane,
                            start + (3 + in_x) * plane,
                            start + (3 * in_y + 1) * plane,
                            start + (3 * in_y + in_x) * plane,
                            (near + near_x) * c + v,
                            (near + inner_x) * c + v,
                            (inner + near_x) * c + v,
                            (inner + inner_x) * c + v,
                            (k - 1) * c + v,
                            weight + v,
                            row_weight,
                            column_weight,
                            (first + n) * c + v,
                        ),
                    )

    return run_corner


def between_size(plan: Plan) -> int:
    """Count the numbers that a corner's pass holds between its transforms."""
    most = max(k * (plan.products[k - 1] + plan.products[k]) for k in range(1, plan.layers + 1))
    return max(1, most * plan.lanes)


def _corner_writer(plan: Plan, k: int) -> Any:
    """Write what happens to one patch between the products of layer k and those of the next.

    Columns of products are combined. Then, row by row: rows of products are combined, shared parts
    and bias are added, the ReLU is applied, and the row is transformed for the next products or
    read out by the linear models. Then columns are transformed.
    """
    c, lanes = plan.filters, plan.lanes
    before, after = plan.products[k - 1], plan.products[k]
    outputs, following = plan.outputs[k - 1], plan.following(k)
    second = k * before * lanes  # where in `between` rows for the next products are

    def write(to: Lanes, arrays: list[Value], at: list[Value]) -> None:
        made, _, _, _, _, moved, readout, total, between = arrays
        patch, weight, row_weight, column_weight, total_at = at[0], *at[-4:]
        if outputs is not None:
            for b in range(before):
                column = [to.load(made, patch, (a * before + b) * ROOM * c) for a in range(before)]
                for p, value in enumerate(to.transform(outputs, column)):
                    to.store(value, between, (p * before + b) * lanes)
        read = to.load(total, total_at)
        for p in range(k):
            row = [None]
            if outputs is not None:
                row = [to.load(between, (p * before + b) * lanes) for b in range(before)]
                row = to.transform(outputs, row)
            row = [
                to.rectify(_add_shared(to, k, c, (p, q), value, arrays, at))
                for q, value in enumerate(row)
            ]
            if following is None:
                for q, value in enumerate(row):
                    index = (weight, to.times(row_weight, p), to.times(column_weight, q))
                    read = to.multiply_add(read, value, to.load(readout, *index))
                continue
            for b, value in enumerate(to.transform(following, row)):
                to.store(value, between, second + (p * after + b) * lanes)
        if following is None:
            to.store(read, total, total_at)
            return
        for b in range(after):
            column = [to.load(between, second + (p * after + b) * lanes) for p in range(k)]
            for a, value in enumerate(to.transform(following, column)):
                to.store(value, moved, patch, (a * after + b) * ROOM * c)

    return write


def _add_shared(
    to: Lanes,
    k: int,
    c: int,
    place: tuple[int, int],
    value: Value | None,
    arrays: list[Value],
    at: list[Value],
) -> Value:
    """Add the bias and what a corner's value reads of its edges and of the interior.

    Along each axis, the innermost value (k - 1) reads two shared lines, `near` with the middle tap
    and `inner` with the inward one; the value before it reads `near` with the inward tap.
    """
    _, rows, columns, interior, bias, *_ = arrays
    (
        row_near, row_inner, row_inwards, column_near, column_inner, column_inwards,
        middle, middle_in, in_middle, in_in,
        near_near, near_inner, inner_near, inner_inner, bias_at,
    ) = at[1:16]  # fmt: skip
    p, q = place
    terms = [to.load(bias, bias_at)]
    if k > 1:
        if q == k - 1:
            terms += [to.load(rows, at, 3 * p * c) for at in (row_near, row_inner)]
        if q == k - 2:
            terms.append(to.load(rows, row_inwards, 3 * p * c))
        if p == k - 1:
            terms += [to.load(columns, at, 3 * q * c) for at in (column_near, column_inner)]
        if p == k - 2:
            terms.append(to.load(columns, column_inwards, 3 * q * c))
    # (tap, pixel), each (vertical, horizontal).
    reads = {
        (k - 1, k - 1): (
            (middle, near_near),
            (middle_in, near_inner),
            (in_middle, inner_near),
            (in_in, inner_inner),
        ),
        (k - 1, k - 2): ((middle_in, near_near), (in_in, inner_near)),
        (k - 2, k - 1): ((in_middle, near_near), (in_in, near_inner)),
        (k - 2, k - 2): ((in_in, near_near),),
    }
    terms += [to.load(interior, tap, pixel) for tap, pixel in reads.get(place, ())]
    return to.add(*terms) if value is None else to.add(value, *terms)
