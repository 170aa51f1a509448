"""Residual networks as patch classifiers.

References
----------
.. [1] He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, table 1.
.. [2] Lecture on cancer detection in whole-slide images, "Training VGG16 on WSI": the top of a
   network is replaced by global max pooling and a single dense layer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.base import BlockClassifier
from wsi_pipeline.models.pretrained import read_state_dict
from wsi_pipeline.models.state_dicts import fit_state_dict
from wsi_pipeline.models.torchvision_nets import RESNETS, make_stages
from wsi_pipeline.models.vgg import IMAGENET_MEAN, IMAGENET_STD, make_output

Pooling = Literal["max", "average"]
# Layers of each block: the first convolution with its pooling, then [1]'s four groups.
BLOCKS = (("conv1", "bn1", "relu", "maxpool"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
LEAST_SIDE = 32  # px: of which the last maps have one position


class ResNetClassifier(BlockClassifier):
    """The convolutions of a ResNet, global pooling, one dense layer.

    Layers are named as in torchvision (``layer1.0.conv1``, ...). An image of one channel is taken
    as grey.

    Parameters
    ----------
    width : float
        Factor on the number of channels, which is a multiple of 8; 1 as published, less for small
        machines.
    pooling : {"max", "average"}
        ``max`` is the lecture's, which sees a small lesion in a large patch; ``average`` the
        network's own.
    """

    architecture: ClassVar[str]  # in `RESNETS`
    n_blocks: ClassVar[int] = len(BLOCKS)
    mean: Tensor
    std: Tensor

    def __init__(self, *, width: float = 1.0, pooling: Pooling = "max") -> None:
        super().__init__()
        if not 0 < width <= 4:
            raise ModelError(f"ResNet's width must be in (0, 4], got width={width}")
        if pooling not in get_args(Pooling):
            raise ModelError(f"ResNet's pooling must be max or average, got pooling={pooling!r}")
        self.options = {"width": width, "pooling": pooling}
        self.pooling = pooling
        layers, self.channels = make_stages(*RESNETS[self.architecture], width=width)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.output = make_output(self.channels)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    @property
    def last_layer(self) -> nn.Module:
        """Layer of the last maps, for explanations."""
        return self.get_submodule(BLOCKS[-1][-1])

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images: (B, 3, H, W) float in [0, 1] -> (B,)."""
        return self.decode(self.encode(x, self.n_blocks), self.n_blocks)

    def blocks(self) -> list[nn.Module]:
        """Return the five blocks: the first layers, and four groups of residual blocks."""
        return [nn.Sequential(*map(self.get_submodule, names)) for names in BLOCKS]

    def encode(self, x: Tensor, n_blocks: int) -> Tensor:
        """Return the maps of images after some blocks: (B, 3 or 1, H, W) in [0, 1] -> (B, C, h, w).

        With no block, the normalised images.
        """
        x = self.prepare(x)
        if min(x.shape[-2:]) < LEAST_SIDE:
            raise ModelError(
                f"{type(self).__name__} halves its input five times and needs at least "
                f"{LEAST_SIDE} x {LEAST_SIDE} px, got {x.shape[-1]} x {x.shape[-2]}"
            )
        maps = (x - self.mean) / self.std  # a single channel is spread
        return self._apply_layers(maps, BLOCKS[:n_blocks])

    def decode(self, maps: Tensor, n_blocks: int) -> Tensor:
        """Return the logits of images from the maps of `encode`: (B, C, h, w) -> (B,)."""
        maps = self._apply_layers(maps, BLOCKS[n_blocks:])
        with torch.autocast(maps.device.type, enabled=False):
            # In half precision the last sum would leave a few hundred distinct scores.
            exact = maps.to(self.output.weight.dtype)
            pooled = exact.amax(dim=(2, 3)) if self.pooling == "max" else exact.mean(dim=(2, 3))
            logits: Tensor = self.output(pooled)
        return logits.squeeze(-1)

    def _apply_layers(self, maps: Tensor, blocks: Sequence[Sequence[str]]) -> Tensor:
        for name in (name for names in blocks for name in names):
            maps = self.get_submodule(name)(maps)
        return maps

    def load_imagenet(self, path: Path) -> None:
        """Load torchvision's state dict of the same network, without its last layer.

        Raises
        ------
        ModelError
            With the file, and the layers that do not fit.
        """
        wanted = {k: v for k, v in self.state_dict().items() if not k.startswith("output.")}
        ready = fit_state_dict(
            path,
            read_state_dict(path),
            wanted,
            architecture=self.architecture,
            unused=("fc.", "output."),
            remedy=f"give torchvision's weights of {self.architecture}, and leave width at 1",
        )
        self.load_state_dict(ready, strict=False)


class ResNet18(ResNetClassifier):
    """Blocks of two convolutions: 11,177,025 parameters."""

    architecture = "resnet18"


class ResNet34(ResNetClassifier):
    """More of the same blocks: 21,285,185 parameters."""

    architecture = "resnet34"


class ResNet50(ResNetClassifier):
    """Bottlenecks of three convolutions: 23,510,081 parameters."""

    architecture = "resnet50"
