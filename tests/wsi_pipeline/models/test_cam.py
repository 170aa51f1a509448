"""The CAM network of PatchNet paper 2 (appendix C)."""

import pytest
import torch
from torch import nn

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.cam import CAM
from wsi_pipeline.models.pretrained import load_imagenet_weights
from wsi_pipeline.models.vgg import VGG19


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = CAM(width=1 / 16)
        nn.init.normal_(net.output.weight)
        nn.init.normal_(net.output.bias)
        return net.eval()


def test_it_has_the_published_number_of_parameters_and_three_poolings():
    with torch.device("meta"):
        net = CAM()
        maps = net.features(torch.empty(1, 3, 128, 128))
    assert sum(p.numel() for p in net.parameters()) == 20_024_897
    assert sum(p.numel() for p in net.features.parameters()) == 20_024_384
    assert sum(isinstance(m, nn.MaxPool2d) for m in net.modules()) == 3
    assert maps.shape == (1, 512, 16, 16)


def test_its_convolutions_take_the_weights_of_a_vgg19(tmp_path, model):
    source = VGG19(width=1 / 16)
    torch.save(source.state_dict(), tmp_path / "vgg19.pth")
    load_imagenet_weights(model, tmp_path / "vgg19.pth")
    assert torch.equal(model.features[34].weight, source.features[34].weight)


def test_the_mean_of_the_class_map_and_the_bias_are_the_logit(model):
    x = torch.rand(3, 3, 40, 56)
    maps = model.class_map(x)
    assert maps.shape == (3, 5, 7)
    torch.testing.assert_close(
        maps.mean((1, 2)) + model.output.bias, model(x), atol=1e-5, rtol=1e-5
    )


def test_grad_cam_at_its_last_layer_is_the_class_map_over_the_positions(model):
    """alpha_f = mean of dy/dF_f = w_f / (H' W'); before its ReLU, Grad-CAM * H' W' == CAM."""
    x = torch.rand(2, 3, 32, 48)
    maps = model.feature_maps(x).detach().requires_grad_()
    logits = model.output(maps.mean((2, 3))).sum()
    (gradient,) = torch.autograd.grad(logits, maps)
    alpha = gradient.mean((2, 3), keepdim=True)
    grad_cam = (alpha * maps).sum(1)
    torch.testing.assert_close(grad_cam * 4 * 6, model.class_map(x), atol=1e-5, rtol=1e-5)


def test_too_small_an_image_is_refused(model):
    with pytest.raises(ModelError, match=r"CAM halves its input three times.*8 x 8 px, got 9 x 7"):
        model(torch.rand(1, 3, 7, 9))
