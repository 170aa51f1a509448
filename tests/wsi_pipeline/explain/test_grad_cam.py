"""Grad-CAM against its definition."""

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn
from torch.nn import functional as F

from wsi_pipeline.errors import ModelError
from wsi_pipeline.explain import grad_cam as module
from wsi_pipeline.explain.grad_cam import GradCamSettings
from wsi_pipeline.models import build_model


def network(name, width=1 / 64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build_model(name, width=width)
        for parameter in net.parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, std=0.1)
        last = net.classifier[-1] if name == "vgg11" else net.output
        nn.init.normal_(last.weight)
    return net.double().eval()


def grad_cam(net, images, layer=None):
    config = GradCamSettings(layer)
    arrays = images.permute(0, 2, 3, 1).numpy()
    return torch.from_numpy(module.METHOD(net, arrays, config=config)).double()


IMAGES = torch.rand(3, 3, 64, 96, generator=torch.Generator().manual_seed(1)).double()


def test_of_the_cam_network_it_is_the_positive_class_map_over_the_positions():
    net = network("cam")
    small = net.class_map(IMAGES).detach().relu() / (8 * 12)
    expected = F.interpolate(small[:, None], size=(64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(grad_cam(net, IMAGES), expected[:, 0], atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("name", ["vgg11", "vgg11_pooled", "vgg16"])
def test_it_weighs_a_convolutions_maps_by_their_finite_differences(name):
    """Before the ReLU: of the zeros behind it several are the maximum that is pooled."""
    net = network(name)
    layer, step = net.features[-3], 1e-6
    maps = net.features[:-2]((IMAGES[:1] - net.mean) / net.std).detach()
    assert maps.shape[-2:] == (4, 6)  # before the last pooling

    def logit(moved):
        hook = layer.register_forward_hook(lambda *_: moved)
        with torch.no_grad():
            found = net(IMAGES[:1]).item()
        hook.remove()
        return found

    expected = torch.zeros(4, 6).double()
    for f in range(maps.shape[1]):
        total = 0.0
        for y, x in np.ndindex(4, 6):
            up, down = maps.clone(), maps.clone()
            up[0, f, y, x] += step
            down[0, f, y, x] -= step
            total += (logit(up) - logit(down)) / (2 * step)
        expected += total / 24 * maps[0, f]
    stretched = F.interpolate(
        expected.relu()[None, None], size=(64, 96), mode="bilinear", align_corners=False
    )
    found = grad_cam(net, IMAGES[:1], layer=f"features.{len(net.features) - 3}")
    torch.testing.assert_close(found, stretched[0], atol=1e-7, rtol=1e-4)


def test_of_224_px_the_map_before_the_last_pooling_has_14_positions():
    net = build_model("vgg11", width=1 / 32).eval()
    sizes = []
    net.features[-2].register_forward_hook(lambda module, x, y: sizes.append(y.shape[-2:]))
    grad_cam(net, torch.rand(1, 3, 224, 224))
    assert sizes == [(14, 14)]


def test_the_score_in_place_of_the_logit_only_scales_the_map():
    """dS/dF = S (1 - S) dy/dF, one positive number for each image."""
    net = network("vgg11")
    of_logit = grad_cam(net, IMAGES)
    forward = net.forward
    net.forward = lambda x: forward(x).sigmoid()
    of_score = grad_cam(net, IMAGES)
    for a, b in zip(of_logit, of_score, strict=True):
        torch.testing.assert_close(a / a.max(), b / b.max(), atol=1e-6, rtol=1e-5)


def test_another_layer_can_be_asked_for_and_one_without_maps_is_refused():
    net = network("vgg11")
    default = grad_cam(net, IMAGES)
    assert isinstance(net.features[19], nn.ReLU)  # the last one, before the last pooling
    assert torch.equal(grad_cam(net, IMAGES, layer="features.19"), default)
    assert not torch.equal(grad_cam(net, IMAGES, layer="features.18"), default)
    with pytest.raises(ModelError, match=r"take one of model\.features"):
        grad_cam(net, IMAGES, layer="classifier.0")
    with pytest.raises(ModelError, match=r"VGG11 has no layer 'block5'; it has: features\.0, "):
        grad_cam(net, IMAGES, layer="block5")


def test_it_is_captums():
    """Whose default leaves the ReLU out."""
    net = network("vgg16")
    small = LayerGradCam(net, net.features[-2]).attribute(
        IMAGES.clone().requires_grad_(), relu_attributions=True
    )
    expected = F.interpolate(small, size=(64, 96), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(grad_cam(net, IMAGES), expected.detach(), atol=1e-7, rtol=1e-6)
