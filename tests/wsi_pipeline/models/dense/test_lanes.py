"""Straight-line transforms against the matrices that they are written from."""

import numba
import numpy as np

from wsi_pipeline.models.dense.lanes import layered
from wsi_pipeline.models.dense.schemes import choose_scheme


def matrices():
    """Those of all schemes, and some with twins in unusual places."""
    schemes = [
        choose_scheme(n, products) for n in range(1, 7) for products in ("toom-cook", "direct")
    ]
    for scheme in schemes:
        yield from (scheme.inputs.numpy(), scheme.outputs.numpy())
    yield np.array([[1.0, -1, 1], [1, 1, -1], [-1, 1, 1], [0, 0, 0]])  # every row like every other
    yield np.array([[2.0, 2, -2], [3, -3, 3]])  # three columns alike
    yield np.array([[1.0, 2], [1, 2], [-1, -2]])


def test_a_transform_is_the_product_with_its_matrix():
    every = list(matrices())

    def writer(matrix):
        rows = tuple(tuple(row) for row in matrix.tolist())

        def write(to, arrays, at):
            values = [to.load(arrays[0], at[0], number * 4) for number in range(len(rows[0]))]
            for number, value in enumerate(to.transform(rows, values)):
                to.store(value, arrays[1], at[0], number * 4)

        return write

    transform = layered(4, {number: writer(matrix) for number, matrix in enumerate(every)})

    @numba.njit
    def run(number, source, target):
        transform(number, (source, target), (0,))

    for number, matrix in enumerate(every):
        values = np.random.default_rng(number).normal(size=(matrix.shape[1], 4))
        target = np.full((matrix.shape[0], 4), np.nan)
        run(number, values.reshape(-1), target.reshape(-1))
        np.testing.assert_allclose(target, matrix @ values, rtol=0, atol=1e-12)
