"""Schemes compared with the sum they compute."""

import pytest
import torch

from wsi_pipeline.models.dense.schemes import choose_scheme


def border_sum(inputs, taps):
    n = len(inputs)
    return torch.stack(
        [
            sum(taps[d + 1] * inputs[p + d] for d in (-1, 0, 1) if 0 <= p + d < n)
            for p in range(n + 1)
        ]
    )


@pytest.mark.parametrize("products", ["toom-cook", "direct"])
@pytest.mark.parametrize("n", range(1, 9))
def test_a_scheme_computes_the_border_sum(n, products):
    scheme = choose_scheme(n, products)
    inputs, taps = torch.randn(n, dtype=torch.double), torch.randn(3, dtype=torch.double)
    made = scheme.outputs @ ((scheme.inputs @ inputs) * (scheme.taps @ taps))
    torch.testing.assert_close(made, border_sum(inputs, taps), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n", "products"), [(2, 4), (3, 5), (4, 6), (5, 7), (6, 9)])
def test_toom_cook_makes_the_fewest_products_and_one_more_of_six_values(n, products):
    assert choose_scheme(n, "toom-cook").products == products
