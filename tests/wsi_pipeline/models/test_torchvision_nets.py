"""Networks with torchvision's names of parameters (docs/other_models.md)."""

import pytest
import torch
from torch import nn

from wsi_pipeline.models.torchvision_nets import ARCHITECTURES, count_classes

# torchvision 0.x, 1000 classes: parameters; tensors of the state dict.
SIZES = {
    "resnet18": (11_689_512, 122),
    "resnet34": (21_797_672, 218),
    "resnet50": (25_557_032, 320),
    "densenet121": (7_978_856, 727),
    "vgg11": (132_863_336, 22),
    "vgg13": (133_047_848, 26),
    "vgg16": (138_357_544, 32),
    "vgg19": (143_667_240, 38),
    "vgg11_bn": (132_868_840, 62),
    "vgg13_bn": (133_053_736, 76),
    "vgg16_bn": (138_365_992, 97),
    "vgg19_bn": (143_678_248, 118),
}
# Names and shapes of torchvision's files: first, last and distinctive layers.
SHAPES = {
    "resnet18": {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_mean": (64,),
        "layer1.0.conv1.weight": (64, 64, 3, 3),
        "layer1.1.bn2.num_batches_tracked": (),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer2.0.downsample.1.running_var": (128,),
        "layer4.1.conv2.weight": (512, 512, 3, 3),
        "fc.weight": (1000, 512),
        "fc.bias": (1000,),
    },
    "resnet34": {
        "layer1.2.conv2.weight": (64, 64, 3, 3),
        "layer2.3.bn2.bias": (128,),
        "layer3.5.conv1.weight": (256, 256, 3, 3),
        "layer4.2.bn1.weight": (512,),
        "fc.weight": (1000, 512),
    },
    "resnet50": {
        "layer1.0.conv1.weight": (64, 64, 1, 1),
        "layer1.0.conv2.weight": (64, 64, 3, 3),
        "layer1.0.conv3.weight": (256, 64, 1, 1),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer3.5.bn3.weight": (1024,),
        "layer4.0.downsample.0.weight": (2048, 1024, 1, 1),
        "fc.weight": (1000, 2048),
    },
    "densenet121": {
        "features.conv0.weight": (64, 3, 7, 7),
        "features.norm0.weight": (64,),
        "features.denseblock1.denselayer1.norm1.weight": (64,),
        "features.denseblock1.denselayer1.conv1.weight": (128, 64, 1, 1),
        "features.denseblock1.denselayer6.conv2.weight": (32, 128, 3, 3),
        "features.transition1.norm.running_mean": (256,),
        "features.transition1.conv.weight": (128, 256, 1, 1),
        "features.denseblock4.denselayer16.norm1.weight": (992,),
        "features.norm5.bias": (1024,),
        "classifier.weight": (1000, 1024),
    },
    "vgg13": {
        "features.0.weight": (64, 3, 3, 3),
        "features.22.bias": (512,),
        "classifier.0.weight": (4096, 25088),
        "classifier.6.weight": (1000, 4096),
    },
    "vgg16_bn": {
        "features.0.bias": (64,),
        "features.1.running_var": (64,),
        "features.40.weight": (512, 512, 3, 3),
        "features.41.num_batches_tracked": (),
        "classifier.6.bias": (1000,),
    },
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sizes_are_those_of_torchvision(name):
    with torch.device("meta"):
        network = ARCHITECTURES[name](1000)
    parameters = sum(p.numel() for p in network.parameters())
    assert (parameters, len(network.state_dict())) == SIZES[name]


@pytest.mark.parametrize("name", SHAPES)
def test_names_and_shapes_are_those_of_torchvision(name):
    with torch.device("meta"):
        stored = ARCHITECTURES[name](1000).state_dict()
    assert {key: tuple(stored[key].shape) for key in SHAPES[name]} == SHAPES[name]
    assert count_classes(name, stored) == 1000


def test_strides_are_those_of_torchvision():
    # v1.5: the stride of a bottleneck is in its 3x3 convolution
    with torch.device("meta"):
        first = ARCHITECTURES["resnet50"](2).layer2[0]
    assert (first.conv1.stride, first.conv2.stride) == ((1, 1), (2, 2))


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_the_last_maps_are_a_32nd_of_the_image_and_averaged(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, x = ARCHITECTURES[name](5).eval(), torch.rand(2, 3, 64, 96)
    seen = []
    last = network.layer4 if name == "resnet18" else network.features
    last.register_forward_hook(lambda *a: seen.append(a[2]))
    with torch.inference_mode():
        logits = network(x)
    assert seen[0].shape[2:] == (2, 3)
    pooled = nn.functional.relu(seen[0]).mean((2, 3))
    top = network.fc if name == "resnet18" else network.classifier
    torch.testing.assert_close(logits, top(pooled))
