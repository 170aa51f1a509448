"""VGG as the lecture trains it: convolutions, global max pooling, one logistic output.

References
----------
.. [1] Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
   ICLR 2015, table 1, configurations A, D and E.
.. [2] Lecture on cancer detection in whole-slide images, "Training VGG16 on WSI": the fully
   connected top is replaced by global max pooling and a single dense layer.
"""

import math
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.base import PatchClassifier

# [1], table 1: output channels of each 3x3 convolution; M is 2x2 max pooling, stride 2.
# fmt: off
LAYERS: dict[str, tuple[int | str, ...]] = {
    "A": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "D": (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"),
    "E": (64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M",
          512, 512, 512, 512, "M"),
}
# fmt: on

# Per-channel mean and standard deviation of ImageNet, RGB in [0, 1]: what torchvision's weights
# were trained with. The lecture names no preprocessing (specs/models.md 1.9).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VGG(PatchClassifier):
    """The convolutions of a VGG, global max pooling, one dense layer.

    The convolutions are named as in torchvision (``features.0.weight``, ...), so that its ImageNet
    weights load by name. Pooling after the last block changes nothing before a global maximum, for
    even sizes, and is kept as published. There is no batch normalisation.

    Parameters
    ----------
    width : float
        Factor on the number of channels; 1 as published, less for small machines.
    """

    configuration: ClassVar[str]  # column of [1], table 1
    mean: Tensor
    std: Tensor

    def __init__(self, *, width: float = 1.0) -> None:
        super().__init__()
        if not 0 < width <= 4:
            raise ModelError(f"VGG's width must be in (0, 4], got width={width}")
        self.options = {"width": width}
        self.features, channels = make_features(LAYERS[self.configuration], width=width)
        self.output = nn.Linear(channels, 1)
        # The maximum over positions of many channels is large: small weights keep the first
        # logits near 0, as in [1], 3.1 (normal, variance 1e-2 squared).
        nn.init.normal_(self.output.weight, std=0.01)
        nn.init.zeros_(self.output.bias)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Give the logits of images.

        Parameters
        ----------
        x : (B, 3, H, W) float in [0, 1]
            At least 32 px on each side.

        Returns
        -------
        logits : (B,)
        """
        if min(x.shape[-2:]) < 32:
            raise ModelError(
                f"{type(self).__name__} halves its input five times and needs at least 32 x 32 "
                f"px, got {x.shape[-1]} x {x.shape[-2]}"
            )
        maps = self.features((x - self.mean) / self.std)
        with torch.autocast(x.device.type, enabled=False):
            # In half precision the last sum would leave a few hundred distinct scores.
            logits: Tensor = self.output(maps.amax(dim=(2, 3)).to(self.output.weight.dtype))
        return logits.squeeze(-1)


class VGG11(VGG):
    """Eight convolutions: 9,220,993 parameters."""

    configuration = "A"


class VGG16(VGG):
    """Thirteen convolutions, the lecture's network: 14,715,201 parameters."""

    configuration = "D"


class VGG19(VGG):
    """Sixteen convolutions: 20,024,897 parameters."""

    configuration = "E"


def make_features(
    layers: tuple[int | str, ...], *, width: float = 1.0
) -> tuple[nn.Sequential, int]:
    """Build the convolutional part of a VGG.

    Returns
    -------
    features : nn.Sequential
        Numbered as in torchvision.
    channels : int
        Of its output.
    """
    modules: list[nn.Module] = []
    channels = 3
    for layer in layers:
        if isinstance(layer, str):
            modules.append(nn.MaxPool2d(2, 2))
            continue
        out = max(1, round(layer * width))
        conv = nn.Conv2d(channels, out, 3, padding=1)
        # He et al. 2015: keeps the size of activations through ReLU layers, in the direction that
        # the signal goes; from scratch, configuration D learns with nothing smaller.
        nn.init.normal_(conv.weight, std=math.sqrt(2 / (9 * channels)))
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # Conv2d's bias is there by default
        modules += [conv, nn.ReLU()]  # modules, not functions: guided backpropagation hooks them
        channels = out
    return nn.Sequential(*modules), channels


def load_imagenet_weights(model: nn.Module, path: Path) -> None:
    """Load the convolutions of a state dict in torchvision's layout into a model.

    Parameters
    ----------
    model : nn.Module
        With ``features`` as `make_features` builds them.
    path : Path
        ``.safetensors``, or ``.pth`` as torchvision publishes it. Its fully connected layers
        (``classifier.*``) are not used.

    Raises
    ------
    ModelError
        Naming the file, and the layer that is missing or of another shape.
    """
    found = _read_tensors(path)
    wanted = {k: v for k, v in model.state_dict().items() if k.startswith("features.")}
    for name, parameter in wanted.items():
        if name not in found:
            raise ModelError(
                f"{path.name}: no layer '{name}'; give weights of the same VGG, in torchvision's "
                "layout"
            )
        if found[name].shape != parameter.shape:
            raise ModelError(
                f"{path.name}: layer '{name}' is {tuple(found[name].shape)}, the model's is "
                f"{tuple(parameter.shape)}; give weights of the same VGG, or set width to 1"
            )
    model.load_state_dict({name: found[name] for name in wanted}, strict=False)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    import safetensors
    import safetensors.torch

    if not path.is_file():
        raise ModelError(f"{path}: no such weights file; give it by train.<model>.model.weights")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds; each means: no weights
        raise ModelError(
            f"{path.name}: not a file of weights ({type(error).__name__}); give a .safetensors, or "
            "a .pth of plain tensors"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ModelError(f"{path.name}: not a state dict of plain tensors")
    return found
