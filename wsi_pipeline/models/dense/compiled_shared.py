"""What patches share, compiled: the interior and the edges, and their part of the linear models.

Layouts, all flat. Taps of the interior before layer k: (9, Y, X, C), tap (dy, dx) at 3 dy + dx.
Taps of an edge, from which corners read: (lines, along, k, 3, C) at the top and bottom, and
(along, lines, k, 3, C) at the left and right, so that what a row of patches reads is together.
"""

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from numba.core import cgutils

from wsi_pipeline.models.dense.lanes import Lanes, Value, layered
from wsi_pipeline.models.dense.plan import PLACES, Plan, compile_function


@cache
def compile_shared(plan: Plan) -> Any:
    """Compile `run_interior`, `read_interior`, `run_edge`."""
    c, lanes, m, layers, inside = plan.filters, plan.lanes, plan.m, plan.layers, plan.inside
    products = plan.products
    interior_pass = layered(lanes, {0: _write_interior})
    accumulate = layered(lanes, {0: write_accumulate})
    edge_taps = layered(lanes, {k: _edge_taps_writer(plan, k) for k in range(2, layers + 1)})
    edge_values = layered(lanes, {k: _edge_values_writer(plan, k) for k in range(1, layers + 1)})

    @compile_function
    def run_interior(values, weight, taps, bias, after, height, width):  # type: ignore[no-untyped-def]
        """Multiply the interior (height, width, ci) with each tap, and sum to the next one."""
        ci = weight.shape[1]
        plane = height * width * c
        for first in range(0, height * width, PLACES):
            count = min(PLACES, height * width - first)
            source = values[first * ci : (first + count) * ci].reshape(count, ci)
            for tap in range(9):
                at = tap * plane + first * c
                np.dot(source, weight[tap], taps[at : at + count * c].reshape(count, c))
        for y in range(height - 2):
            for x in range(width - 2):
                at, to = (y * width + x) * c, (y * (width - 2) + x) * c
                for v in range(0, c, lanes):
                    interior_pass(
                        0,
                        (taps, bias, after),
                        (at + v, 3 * plane + width * c, plane + c, v, to + v),
                    )

    @compile_function
    def read_interior(values, readout, total, h, w):  # type: ignore[no-untyped-def]
        """Add the interior's part of the linear models to the patches' sums."""
        width = w + inside - 1
        for i in range(h):
            for j in range(w):
                for u in range(inside):
                    at, weight = ((i + u) * width + j) * c, ((layers + u) * m + layers) * c
                    for v in range(0, c, lanes):
                        accumulate(
                            0,
                            (values, readout, total),
                            (at + v, c, weight + v, c, inside, (i * w + j) * c + v),
                        )

    @compile_function
    def multiply_line(moved, weights, first_weight, made, count, places, room):  # type: ignore[no-untyped-def]
        """Multiply the places of one line of an edge; parts of about equal size."""
        parts = (places + PLACES - 1) // PLACES
        for part in range(parts):
            first = places * part // parts
            size = (places * (part + 1) // parts - first) * c
            for product in range(3 * count):
                source, target = product // 3 * room + first * c, product * room + first * c
                weight = first_weight + product * c * c
                np.dot(
                    moved[source : source + size].reshape(-1, c),
                    weights[weight : weight + c * c].reshape(c, c),
                    made[target : target + size].reshape(-1, c),
                )

    @compile_function
    def run_edge(upright, far, lines, length, arrays, at_layer, edge_at_layer, weights, w):  # type: ignore[no-untyped-def]
        """Take one side of all patches through all layers, line by line.

        `length` pixels along a line; arrays of taps begin at `at_layer` and `edge_at_layer`.
        """
        made, taps, interior, bias, moved, values, readout, total = arrays
        room = (length + 1) * c
        for line in range(lines):
            first_weight = 0
            for k in range(1, layers + 1):
                places, across = length - 2 * k, lines + m + 1 - 2 * k
                at, step = edge_at_layer[k - 1], k * 3 * c
                at += line * (places + 2) * step if upright else line * step
                step = step if upright else lines * step
                if k > 1:
                    count = products[k - 1]
                    multiply_line(moved, weights, first_weight, made, count, places + 2, room)
                    first_weight += 3 * count * c * c
                    for x in range(places + 2):
                        for v in range(0, c, lanes):
                            edge_taps(k, (made, taps), (x * c + v, room, at + x * step + v))
                # The interior's pixels and its taps, along the side and across it.
                width, plane = places + 2 if upright else across, (places + 2) * across * c
                pixel, over = (c, width * c) if upright else (width * c, c)
                tap, tap_over = (plane, 3 * plane) if upright else (3 * plane, plane)
                near, inner, inwards = (m - 2 * k + 1, m - 2 * k, 0) if far else (0, 1, 2)
                near = at_layer[k - 1] + (line + near) * over
                inner = at_layer[k - 1] + (line + inner) * over
                for x in range(places):
                    for v in range(0, c, lanes):
                        offset = x * pixel + v
                        edge_values(
                            k,
                            (taps, interior, bias, moved, values),
                            (
                                at + x * step + v,
                                step,
                                near + tap_over + offset,
                                inner + inwards * tap_over + offset,
                                near + inwards * tap_over + offset,
                                tap + pixel,
                                (k - 1) * c + v,
                                x * c + v,
                                room,
                            ),
                        )
            for p in range(layers):
                u = m - 1 - p if far else p
                weight = (u * m + layers) * c if upright else (layers * m + u) * c
                step = c if upright else m * c
                for x in range(length - m + 1):
                    to = (line * w + x) * c if upright else (x * w + line) * c
                    for v in range(0, c, lanes):
                        accumulate(
                            0,
                            (values, readout, total),
                            (p * room + x * c + v, c, weight + v, step, inside, to + v),
                        )

    return SimpleNamespace(
        run_interior=run_interior, read_interior=read_interior, run_edge=run_edge
    )


def _write_interior(to: Lanes, arrays: list[Value], at: list[Value]) -> None:
    """One pixel of the next interior: nine products, the bias, the cut at zero."""
    taps, bias, after = arrays
    start, row, column, bias_at, after_at = at
    value = to.load(bias, bias_at)
    for dy in range(3):
        for dx in range(3):
            value = to.add(value, to.load(taps, start, to.times(row, dy), to.times(column, dx)))
    to.store(to.rectify(value), after, after_at)


def write_accumulate(to: Lanes, arrays: list[Value], at: list[Value]) -> None:
    """Add a row of neighbouring values, each times its own weight."""
    values, weights, total = arrays
    value, value_step, weight, weight_step, length, total_at = at
    hold: Callable[..., Value] = cgutils.alloca_once_value
    held = hold(to.builder, to.load(total, total_at))
    with cgutils.for_range(to.builder, length) as loop:
        own = to.load(values, value, to.builder.mul(loop.index, value_step))
        factor = to.load(weights, weight, to.builder.mul(loop.index, weight_step))
        to.builder.store(to.multiply_add(to.builder.load(held), own, factor), held)
    to.store(to.builder.load(held), total, total_at)


def _edge_taps_writer(plan: Plan, k: int) -> Any:
    """Combine the products at one position of an edge; the taps along it stay separate."""
    c, count, outputs = plan.filters, plan.products[k - 1], plan.outputs[k - 1]
    assert outputs is not None

    def write(to: Lanes, arrays: list[Value], at: list[Value]) -> None:
        made, taps = arrays
        made_at, made_step, taps_at = at
        for tap in range(3):
            found = [to.load(made, made_at, to.times(made_step, 3 * a + tap)) for a in range(count)]
            for p, value in enumerate(to.transform(outputs, found)):
                to.store(value, taps, taps_at, (3 * p + tap) * c)

    return write


def _edge_values_writer(plan: Plan, k: int) -> Any:
    """Sum along an edge, add the interior and the bias, cut; ready for the next products."""
    c, following = plan.filters, plan.following(k)

    def write(to: Lanes, arrays: list[Value], at: list[Value]) -> None:
        taps, interior, bias, moved, values = arrays
        taps_at, taps_step, middle, inner, inwards, step, bias_at, place, room = at

        def shared(start: Value) -> Value:
            return to.add(*(to.load(interior, start, to.times(step, d)) for d in range(3)))

        made = []
        for p in range(k):
            value = to.load(bias, bias_at)
            if k > 1:
                own = (
                    to.load(taps, taps_at, to.times(taps_step, d), (3 * p + d) * c)
                    for d in range(3)
                )
                value = to.add(value, *own)
            # The two innermost of the border reach into the interior.
            if p == k - 2:
                value = to.add(value, shared(inwards))
            if p == k - 1:
                value = to.add(value, shared(middle), shared(inner))
            made.append(to.rectify(value))
        target = values if following is None else moved
        ready = made if following is None else to.transform(following, made)
        for number, value in enumerate(ready):
            to.store(value, target, place, to.times(room, number))

    return write
