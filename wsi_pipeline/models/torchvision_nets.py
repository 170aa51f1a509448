"""Networks of torchvision in plain torch, with its names of parameters, so that its files load.

References
----------
.. [1] He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, table 1.
   As in torchvision, the stride of a bottleneck is in its 3x3 convolution ("ResNet v1.5").
.. [2] Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks",
   CVPR 2017, table 1.
.. [3] Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
   ICLR 2015, table 1.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsi_pipeline.models.vgg import DROPOUT, HIDDEN, LAYERS, TOP_SIDE

CONFIGURATION_B = (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")  # [3]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut ([1], figure 5, left)."""

    expansion: ClassVar[int] = 1

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()  # one for each use: explanations hook them
        self.downsample = _shortcut(inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, planes, h / stride, w / stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        summed: Tensor = self.relu2(out + (x if self.downsample is None else self.downsample(x)))
        return summed


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut ([1], figure 5, right)."""

    expansion: ClassVar[int] = 4

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.downsample = _shortcut(inputs, planes * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, 4 planes, h / stride, w / stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        summed: Tensor = self.relu3(out + (x if self.downsample is None else self.downsample(x)))
        return summed


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


Block = type[BasicBlock] | type[Bottleneck]
RESNETS: dict[str, tuple[Block, tuple[int, int, int, int]]] = {  # [1], table 1
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


def make_stages(
    block: Block, depths: tuple[int, int, int, int], *, width: float = 1.0
) -> tuple[dict[str, nn.Module], int]:
    """Build the layers of a ResNet up to its last maps, by torchvision's names.

    Returns
    -------
    layers : dict
        In the order of their use.
    channels : int
        Of the last maps, which are a 32nd of the image's size.
    """
    # Multiples of 8: with 4 or 6 channels the backward pass of a strided 1 x 1 convolution writes
    # outside its memory (PyTorch 2.13 on a CPU, one thread, channels last).
    stem = 8 * max(1, round(8 * width))
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, stem, 7, 2, 3, bias=False),
        "bn1": nn.BatchNorm2d(stem),
        "relu": nn.ReLU(),
        "maxpool": nn.MaxPool2d(3, 2, 1),
    }
    inputs = stem
    for number, depth in enumerate(depths):
        planes = stem * 2**number
        blocks = []
        for position in range(depth):
            blocks.append(block(inputs, planes, 2 if number and not position else 1))
            inputs = planes * block.expansion
        layers[f"layer{number + 1}"] = nn.Sequential(*blocks)
    for module in (m for layer in layers.values() for m in layer.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return layers, inputs


class ResNet(nn.Module):
    """A ResNet with global average pooling and a linear layer ([1])."""

    def __init__(
        self,
        block: Block,
        depths: tuple[int, int, int, int],
        classes: int,
        *,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        layers, channels = make_stages(block, depths, width=width)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._stages = tuple(layers)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes)."""
        for name in self._stages:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


class DenseLayer(nn.Module):
    """Two convolutions whose maps are appended to those there are ([2], "DenseNet-B")."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, inputs + growth, h, w)."""
        inner = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(inner)))], dim=1)


class DenseNet(nn.Module):
    """Dense blocks, each transition between them halving channels and sides ([2])."""

    def __init__(self, depths: tuple[int, ...], growth: int, classes: int) -> None:
        super().__init__()
        channels = 2 * growth
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(3, channels, 7, 2, 3, bias=False),
            norm0=nn.BatchNorm2d(channels),
            relu0=nn.ReLU(),
            pool0=nn.MaxPool2d(3, 2, 1),
        )
        for number, depth in enumerate(depths, start=1):
            block = nn.Sequential()
            for position in range(1, depth + 1):
                block.add_module(f"denselayer{position}", DenseLayer(channels, growth))
                channels += growth
            layers[f"denseblock{number}"] = block
            if number < len(depths):
                layers[f"transition{number}"] = nn.Sequential(
                    OrderedDict[str, nn.Module](
                        norm=nn.BatchNorm2d(channels),
                        relu=nn.ReLU(),
                        conv=nn.Conv2d(channels, channels // 2, 1, bias=False),
                        pool=nn.AvgPool2d(2, 2),
                    )
                )
                channels //= 2
        layers["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes)."""
        maps = F.relu(self.features(x))
        logits: Tensor = self.classifier(maps.mean(dim=(2, 3)))
        return logits


class TorchvisionVGG(nn.Module):
    """A VGG with three linear layers, with or without batch normalisation ([3])."""

    def __init__(self, layers: tuple[int | str, ...], normalised: bool, classes: int) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        channels = 3
        for layer in layers:
            if isinstance(layer, str):
                modules.append(nn.MaxPool2d(2, 2))
                continue
            modules.append(nn.Conv2d(channels, layer, 3, padding=1))
            modules += [nn.BatchNorm2d(layer)] if normalised else []
            modules.append(nn.ReLU())
            channels = layer
        self.features = nn.Sequential(*modules)
        self.classifier = nn.Sequential(
            nn.Linear(channels * TOP_SIDE**2, HIDDEN),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
            nn.Linear(HIDDEN, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes)."""
        maps = F.adaptive_avg_pool2d(self.features(x), TOP_SIDE)
        logits: Tensor = self.classifier(maps.flatten(1))
        return logits


_CONFIGURATIONS = {"11": LAYERS["A"], "13": CONFIGURATION_B, "16": LAYERS["D"], "19": LAYERS["E"]}

# By torchvision's name: a function from the number of classes to the network.
ARCHITECTURES: dict[str, Callable[[int], nn.Module]] = {
    **{name: partial(ResNet, *parts) for name, parts in RESNETS.items()},
    "densenet121": partial(DenseNet, (6, 12, 24, 16), 32),
    **{f"vgg{n}": partial(TorchvisionVGG, layers, False) for n, layers in _CONFIGURATIONS.items()},
    **{
        f"vgg{n}_bn": partial(TorchvisionVGG, layers, True) for n, layers in _CONFIGURATIONS.items()
    },
}
_LAST = {"resnet": "fc.bias", "densenet": "classifier.bias", "vgg": "classifier.6.bias"}


def count_classes(architecture: str, stored: Mapping[str, Any]) -> int | None:
    """Read the number of classes off the last layer of a state dict; None: it has no such layer."""
    last = next(name for family, name in _LAST.items() if architecture.startswith(family))
    for name, value in stored.items():
        if (name == last or name.endswith(f".{last}")) and getattr(value, "ndim", 0) == 1:
            return int(value.shape[0])
    return None
