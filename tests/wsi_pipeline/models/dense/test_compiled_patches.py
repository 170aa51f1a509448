"""Patches far apart, by compiled fast convolutions, against the definition."""

import pytest
import torch
from torch import nn

from wsi_pipeline.models import patchnet as patchnet_module
from wsi_pipeline.models.dense import DenseEngine
from wsi_pipeline.models.dense.costs import TILES
from wsi_pipeline.models.dense.schemes import tile_scheme
from wsi_pipeline.models.patchnet import PatchNet, Subnet


def random_subnet(m, *, bias=0.1, **options):
    torch.manual_seed(m)
    net = Subnet(m, **options)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=bias)
    return net.eval().requires_grad_(False)


def engine_of(net):
    convolutions = [layer for layer in net.convolutions if isinstance(layer, nn.Conv2d)]
    return DenseEngine(convolutions, net.readout_weight, net.readout_bias, compiled=True)


def lattice_of(net, pixels, stride):
    windows = pixels.unfold(1, net.m, stride).unfold(2, net.m, stride)
    rows, columns = windows.shape[1:3]
    return net.filter_outputs(windows.movedim(0, 2).flatten(0, 1)).T.reshape(-1, rows, columns)


@pytest.mark.parametrize("tile", TILES)
def test_a_tile_is_a_convolution(tile):
    scheme = tile_scheme(tile)
    x, taps = torch.rand(tile + 2).double(), torch.rand(3).double()
    expected = sum(x[d : d + tile] * taps[d] for d in range(3))
    made = scheme.outputs @ ((scheme.inputs @ x) * (scheme.taps @ taps))
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-13)


SMALL = pytest.param(9, 5, {"channels": 1, "filters": 6, "depth": 3}, id="m9")
ONE_LAYER = pytest.param(
    5, 4, {"channels": 1, "filters": 3, "depth": 1}, id="m5", marks=pytest.mark.slow
)
PAPER = pytest.param(
    17, 5, {"channels": 3, "filters": 12, "depth": 7}, id="m17", marks=pytest.mark.slow
)


@pytest.mark.slow
@pytest.mark.parametrize(("m", "stride", "options"), [SMALL, ONE_LAYER, PAPER])
def test_lattices_agree_with_the_definition_in_float64(m, stride, options):
    net = random_subnet(m, **options).double()
    pixels = torch.rand(options["channels"], m + 23, m + 31).double()
    pixels[:, :, 20:] = 0.5  # equal patches are evaluated once
    made = engine_of(net).map_lattice(pixels, stride=stride)
    torch.testing.assert_close(made, lattice_of(net, pixels, stride), rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("bias", [0.1, 0.5])
def test_64_filters_in_float32_are_within_1e_5(bias):
    net = random_subnet(17, bias=bias)
    pixels = torch.rand(3, 60, 71)
    made = engine_of(net).map_lattice(pixels, stride=5)
    torch.testing.assert_close(made, lattice_of(net, pixels, 5), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("grid", ["ceil", "floor", "center"])
@pytest.mark.parametrize("normalise", ["unit", "minmax"])
def test_scores_of_images_are_those_of_patches_cut_out(monkeypatch, grid, normalise):
    torch.manual_seed(0)
    model = PatchNet(m=9, stride=4, grid=grid, region=40, normalise=normalise, filters=8).eval()
    x = torch.rand(2, 3, 43, 50)
    with torch.inference_mode():
        expected = model.score(x)
        monkeypatch.setattr(patchnet_module, "COMPILED_WORK", 0)
        monkeypatch.setattr(model.subnet, "forward", None)  # patches are no longer cut out
        found = model.score(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_changed_weights_are_seen(monkeypatch):
    torch.manual_seed(0)
    model = PatchNet(m=9, stride=4, filters=8).eval()
    x = torch.rand(1, 3, 30, 30)
    monkeypatch.setattr(patchnet_module, "COMPILED_WORK", 0)
    with torch.inference_mode():
        before = model(x)
        for parameter in model.parameters():
            parameter.data.mul_(0.9)
        found = model(x)
        monkeypatch.undo()
        torch.testing.assert_close(found, model(x), rtol=0, atol=1e-5)
    assert (found - before).abs().max() > 1e-3


def test_gradients_go_through_patches_cut_out(monkeypatch):
    monkeypatch.setattr(patchnet_module, "COMPILED_WORK", 0)
    model = PatchNet(m=9, stride=4, filters=8).eval()
    model(torch.rand(1, 3, 30, 30)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
