"""PatchNet's dense map on a GPU is that of the CPU."""

import pytest
import torch
from torch import nn

from wsi_pipeline.models.dense import DenseEngine
from wsi_pipeline.models.patchnet import Subnet

pytestmark = pytest.mark.gpu


def make_subnet(m: int) -> Subnet:
    torch.manual_seed(m)
    net = Subnet(m, filters=16)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return net.requires_grad_(False)


@pytest.mark.parametrize("stride", [1, 3, 40])
@pytest.mark.parametrize("m", [5, 17])
def test_the_dense_map_is_that_of_the_cpu(device, m, stride):
    """Both ways, by regions and patch by patch (large strides), to 1e-5: without TF32."""
    net, image = make_subnet(m), torch.rand(3, 60 + m - 1, 75 + m - 1)
    expected = net.dense_engine().map_lattice(image, stride=stride)

    found = net.to(device).dense_engine().map_lattice(image.to(device), stride=stride)

    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-5)


def test_products_of_the_definition_agree(device):
    net, image = make_subnet(9), torch.rand(3, 50, 50)
    expected = net.dense_engine().map_image(image)

    found = net.to(device).dense_engine(products="direct").map_image(image.to(device))

    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-5)


def test_windows_join_without_a_seam(device):
    net, image = make_subnet(7).to(device), torch.rand(3, 90, 90, device=device)
    convolutions = [layer for layer in net.convolutions if isinstance(layer, nn.Conv2d)]
    engine = DenseEngine(convolutions, net.readout_weight, net.readout_bias)
    padded = nn.functional.pad(image, (90,) * 4)

    def read(top, left, height, width):
        return padded[:, top + 90 : top + 90 + height, left + 90 : left + 90 + width]

    parts = [
        torch.cat(
            [engine.map_region(read, top=y, left=x, height=45, width=45) for x in (0, 45)], dim=2
        )
        for y in (0, 45)
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), engine.map_image(image), rtol=0, atol=1e-5)
