"""Guided backpropagation against captum's, and the ReLUs that it must reach."""

import numpy as np
import pytest
import torch
from captum.attr import GuidedBackprop
from torch import nn
from torch.nn import functional as F

from tests.wsi_pipeline.explain.networks import OPTIONS, Linear, draw_images, network
from wsi_pipeline.errors import ModelError
from wsi_pipeline.explain import load_method
from wsi_pipeline.explain.guided_backprop import count_functional_relus
from wsi_pipeline.models import MODELS, build_model
from wsi_pipeline.models.base import PatchClassifier

guided_backprop = load_method("guided_backprop")


class Reused(PatchClassifier):
    """One ReLU after each of two convolutions, in place or not."""

    def __init__(self, relu):
        super().__init__()
        self.options = {}
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.relu = relu

    def forward(self, x):
        return self.relu(self.second(self.relu(self.first(x)))).sum(dim=(1, 2, 3))


def captums(model, images, sign=1):
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    model.eval()
    signed = nn.Sequential(model, nn.Linear(1, 1, bias=False))
    signed.forward = lambda x: sign * model(x)
    with pytest.warns(UserWarning, match="Setting backward hooks"):
        return GuidedBackprop(signed).attribute(x.requires_grad_()).abs().amax(dim=1).numpy()


@pytest.mark.parametrize("target", [1, 0])
@pytest.mark.parametrize("name", ["cam", "vgg11", "vgg16", "patchnet"])
def test_it_is_captums(name, target):
    model, images = network(name), draw_images()
    found = guided_backprop(model, images, target=target)
    np.testing.assert_allclose(
        found, captums(model, images, sign=2 * target - 1), rtol=1e-5, atol=1e-8
    )
    assert not np.allclose(found, load_method("saliency")(model, images))


@pytest.mark.parametrize("relu", [nn.ReLU(), nn.ReLU(inplace=True)], ids=["plain", "in-place"])
def test_a_module_that_is_used_twice_is_guided_twice(relu):
    torch.manual_seed(0)
    model, images = Reused(relu), draw_images()
    np.testing.assert_allclose(
        guided_backprop(model, images), captums(model, images), rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize("function", [F.relu, torch.relu, Ellipsis], ids=["F", "torch", "method"])
def test_a_relu_that_is_no_module_is_refused(function):
    """It silently gave the plain gradient."""
    call = (lambda x: x.relu()) if function is Ellipsis else function
    model = Reused(call)
    with pytest.raises(ModelError, match="Reused calls 2 ReLUs as functions"):
        guided_backprop(model, draw_images())


@pytest.mark.parametrize("name", MODELS)
def test_no_model_has_a_relu_that_is_no_module(name):
    options = OPTIONS.get(name) or OPTIONS["patchnet" if "patchnet" in name else "vgg16"]
    model = build_model(name, **options).eval()
    assert count_functional_relus(model, torch.rand(1, 3, 32, 32)) == 0


def test_without_relus_it_is_the_plain_gradient():
    model, images = Linear(), draw_images(1, 12, 16)
    expected = load_method("saliency")(model, images)
    assert np.array_equal(guided_backprop(model, images), expected)
