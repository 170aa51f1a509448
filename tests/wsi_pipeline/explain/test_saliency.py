"""Saliency against its definition."""

import numpy as np
import pytest
import torch
from captum.attr import Saliency

from tests.wsi_pipeline.explain.networks import Linear, draw_images, network
from wsi_pipeline.explain import load_method

saliency = load_method("saliency")


def test_of_a_linear_model_it_is_the_largest_weight():
    model = Linear()
    found = saliency(model, draw_images(3, 12, 16))
    expected = model.weight.detach().abs().amax(dim=0).float().numpy()
    assert all(np.array_equal(one, expected) for one in found)


@pytest.mark.parametrize("name", ["cam", "vgg11", "patchnet"])
def test_it_is_what_finite_differences_give(name):
    model, step = network(name).double().eval(), 1e-6
    image = draw_images(1) / 255
    found = saliency(model, image)[0]
    x = torch.from_numpy(image).permute(0, 3, 1, 2)
    for row, column in ((3, 4), (16, 20), (31, 39)):
        moved = x.repeat(6, 1, 1, 1)
        for channel in range(3):
            moved[channel, channel, row, column] += step
            moved[3 + channel, channel, row, column] -= step
        with torch.no_grad():
            up, down = model(moved).reshape(2, 3)
        expected = ((up - down) / (2 * step)).abs().max().item()
        assert found[row, column] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_it_is_captums():
    model, images = network("vgg16").eval(), draw_images()
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    expected = Saliency(model).attribute(x.requires_grad_()).amax(dim=1)
    np.testing.assert_allclose(saliency(model, images), expected, rtol=1e-5, atol=1e-7)


def test_where_gamma_has_no_derivative_it_is_0():
    """Black pixels of a model with gamma correction had infinite saliency."""
    found = saliency(network("vgg11_pooled"), draw_images())
    assert (found[:, 10:14, 6:10] == 0).all()  # of the centre, 32 of 40 columns
    assert found.max() > 0
