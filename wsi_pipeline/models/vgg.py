"""The VGG networks, all from one table: the lecture's VGG16, VGG-11 with its linear layers, others.

References
----------
.. [1] Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
   ICLR 2015, table 1, configurations A, D and E.
.. [2] Lecture on cancer detection in whole-slide images, "Training VGG16 on WSI": the fully
   connected top is replaced by global max pooling and a single dense layer.
.. [3] PatchNet paper 2, appendix C: VGG-11 with its linear layers, on images of 224 px.
"""

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.base import BlockClassifier

# [1], table 1: output channels of each 3x3 convolution; M is 2x2 max pooling, stride 2.
# fmt: off
LAYERS: dict[str, tuple[int | str, ...]] = {
    "A": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "D": (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"),
    "E": (64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M",
          512, 512, 512, 512, "M"),
}
# fmt: on
POOLINGS = 5  # of each configuration

# Per-channel mean and standard deviation of ImageNet, RGB in [0, 1]: what torchvision's weights
# were trained with. The lecture names no preprocessing ([2]).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# [1]: side of the last maps of an image of 224 px, and size of the two hidden linear layers.
TOP_SIDE = 7
HIDDEN = 4096
DROPOUT = 0.5


class ReLU(nn.ReLU):
    """In place where no backward pass can want its input: 8 % of a prediction on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(any shape) -> the same shape."""
        return x.relu_() if torch.is_inference_mode_enabled() else super().forward(x)


class VGGFeatures(BlockClassifier):
    """What all VGGs share: normalisation and convolutions; a child adds the top.

    The convolutions are named as in torchvision (``features.0.weight``, ...), so that its ImageNet
    weights load by name. There is no batch normalisation. An image of one channel is taken as grey.

    Parameters
    ----------
    width : float
        Factor on the number of channels; 1 as published, less for small machines.
    configuration : str, optional
        Column of [1], table 1; the class's own if not given.
    """

    configuration: ClassVar[str]  # column of [1], table 1
    poolings: ClassVar[int] = POOLINGS  # the first so many are kept
    n_blocks: ClassVar[int] = POOLINGS  # each ends with a pooling, or its placeholder
    mean: Tensor
    std: Tensor

    def __init__(self, *, width: float = 1.0, configuration: str | None = None) -> None:
        super().__init__()
        if not 0 < width <= 4:
            raise ModelError(f"VGG's width must be in (0, 4], got width={width}")
        self.options = {"width": width}
        self.features, self.channels = make_features(
            LAYERS[configuration or self.configuration], width=width, poolings=self.poolings
        )
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    @property
    def last_layer(self) -> nn.Module:
        """Last ReLU of the convolutions, before the last pooling, for explanations ([2])."""
        return self.features[-2]

    def feature_maps(self, x: Tensor) -> Tensor:
        """Return the last maps of images: (B, 3 or 1, H, W) in [0, 1] -> (B, channels, h, w)."""
        maps: Tensor = self.features(self._normalise(x))
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images: (B, 3, H, W) float in [0, 1] -> (B,)."""
        return self.top(self.feature_maps(x))

    @abstractmethod
    def top(self, maps: Tensor) -> Tensor:
        """Return the logits of images from their last maps: (B, channels, h, w) -> (B,)."""

    def blocks(self) -> list[nn.Module]:
        """Return the five blocks of convolutions ([1], table 1), each with its pooling."""
        ends = self._ends()
        return [self.features[a:b] for a, b in zip([0, *ends], ends, strict=False)]

    def encode(self, x: Tensor, n_blocks: int) -> Tensor:
        """Return the maps of images after some blocks: (B, 3 or 1, H, W) in [0, 1] -> (B, C, h, w).

        With no block, the normalised images.
        """
        maps: Tensor = self.features[: [0, *self._ends()][n_blocks]](self._normalise(x))
        return maps

    def decode(self, maps: Tensor, n_blocks: int) -> Tensor:
        """Return the logits of images from the maps of `encode`: (B, C, h, w) -> (B,)."""
        return self.top(self.features[[0, *self._ends()][n_blocks] :](maps))

    def _ends(self) -> list[int]:
        """Return where each block ends in `features`."""
        last = (nn.MaxPool2d, nn.Identity)
        return [i + 1 for i, module in enumerate(self.features) if isinstance(module, last)]

    def _normalise(self, x: Tensor) -> Tensor:
        """Prepare images and normalise their colours; a single channel is spread to three."""
        x = self.prepare(x)
        least = 2**self.poolings
        if min(x.shape[-2:]) < least:
            times = {3: "three", 5: "five"}.get(self.poolings, str(self.poolings))
            raise ModelError(
                f"{type(self).__name__} halves its input {times} times and needs at least {least} "
                f"x {least} px, got {x.shape[-1]} x {x.shape[-2]}"
            )
        return (x - self.mean) / self.std


class VGG(VGGFeatures):
    """The convolutions of a VGG, global max pooling, one dense layer ([2]).

    Pooling after the last block changes nothing before a global maximum, for even sizes, and is
    kept as published.
    """

    def __init__(self, *, width: float = 1.0) -> None:
        super().__init__(width=width)
        self.output = make_output(self.channels)

    def top(self, maps: Tensor) -> Tensor:
        """Return the logits of images from their last maps: (B, channels, h, w) -> (B,)."""
        with torch.autocast(maps.device.type, enabled=False):
            # In half precision the last sum would leave a few hundred distinct scores.
            logits: Tensor = self.output(maps.amax(dim=(2, 3)).to(self.output.weight.dtype))
        return logits.squeeze(-1)


class VGG11Pooled(VGG):
    """Eight convolutions and the lecture's top: 9,220,993 parameters."""

    configuration = "A"


class VGG16(VGG):
    """Thirteen convolutions, the lecture's network: 14,715,201 parameters."""

    configuration = "D"


class VGG19(VGG):
    """Sixteen convolutions and the lecture's top: 20,024,897 parameters."""

    configuration = "E"


class VGG11(VGGFeatures):
    """Eight convolutions, dropout and three linear layers: 128,770,433 parameters ([1], [3]).

    Made for images of 224 x 224 px. Of other sizes the last maps are averaged to 7 x 7, as
    torchvision does; the papers resize the images instead.
    """

    configuration = "A"

    def __init__(self, *, width: float = 1.0) -> None:
        super().__init__(width=width)
        hidden = max(1, round(HIDDEN * width))
        # Order, and so names, as in torchvision.
        self.classifier = nn.Sequential(
            nn.Linear(self.channels * TOP_SIDE**2, hidden),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
            make_output(hidden),
        )
        for layer in list(self.classifier)[:-1]:
            if isinstance(layer, nn.Linear):
                # [1], 3.1 has a deviation of 0.01; for 4096 inputs He's is twice that. It is
                # taken here because it holds for any width.
                nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.in_features))
                nn.init.zeros_(layer.bias)

    def top(self, maps: Tensor) -> Tensor:
        """Return the logits of images from their last maps: (B, channels, h, w) -> (B,)."""
        if maps.shape[-2:] != (TOP_SIDE, TOP_SIDE):
            maps = F.adaptive_avg_pool2d(maps, TOP_SIDE)
        hidden = self.classifier[:-1](maps.flatten(1))
        output = self.classifier[-1]
        with torch.autocast(maps.device.type, enabled=False):
            logits: Tensor = output(hidden.to(output.weight.dtype))
        return logits.squeeze(-1)


def make_output(channels: int) -> nn.Linear:
    """Build the last layer, so that a network starts undecided.

    The maximum over positions of many channels is large: small weights keep the first logits near
    0, as in [1], 3.1 (normal, variance 1e-2 squared).
    """
    output = nn.Linear(channels, 1)
    nn.init.normal_(output.weight, std=0.01)
    nn.init.zeros_(output.bias)
    return output


def make_features(
    layers: tuple[int | str, ...], *, width: float = 1.0, poolings: int = POOLINGS
) -> tuple[nn.Sequential, int]:
    """Build the convolutional part of a VGG.

    Parameters
    ----------
    layers : tuple
        Channels of each convolution, and ``"M"`` for pooling.
    width : float
        Factor on the channels.
    poolings : int
        Number of poolings that are kept, from the first; the others become placeholders.

    Returns
    -------
    features : nn.Sequential
        Numbered as in torchvision.
    channels : int
        Of its output.
    """
    modules: list[nn.Module] = []
    channels = 3
    pooled = 0
    for layer in layers:
        if isinstance(layer, str):
            modules.append(nn.MaxPool2d(2, 2) if pooled < poolings else nn.Identity())
            pooled += 1
            continue
        out = max(1, round(layer * width))
        conv = nn.Conv2d(channels, out, 3, padding=1)
        # He et al. 2015: keeps the size of activations through ReLU layers, in the direction that
        # the signal goes; from scratch, configuration D learns with nothing smaller.
        nn.init.normal_(conv.weight, std=math.sqrt(2 / (9 * channels)))
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # Conv2d's bias is there by default
        modules += [conv, ReLU()]  # modules, not functions: guided backpropagation hooks them
        channels = out
    return nn.Sequential(*modules), channels
