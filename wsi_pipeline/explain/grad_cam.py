"""Grad-CAM: where in an image the features lie that raise a network's logit.

References
----------
.. [1] Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra, "Grad-CAM: Visual Explanations from Deep
   Networks via Gradient-based Localization", ICCV 2017, equations 1 and 2.
.. [2] The lecture and PatchNet paper 2 take the last convolution after its ReLU, before the last
   pooling: 14 x 14 positions of an image of 224 px.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsi_pipeline.errors import ModelError
from wsi_pipeline.explain.base import Method, Settings, Target, TargetLogit
from wsi_pipeline.models.base import PatchClassifier
from wsi_pipeline.models.resnet import ResNetClassifier
from wsi_pipeline.models.vgg import VGGFeatures


@dataclass(frozen=True)
class GradCamSettings(Settings):
    """The layer to explain."""

    # As in model.named_modules(); None: the last ReLU of the convolutions, before the last pooling
    layer: str | None = None


def grad_cam(
    model: VGGFeatures | ResNetClassifier,
    image: Tensor,
    *,
    target: Target,
    seed: int,
    config: GradCamSettings,
) -> Tensor:
    """Map what speaks for a class: ReLU(sum_f alpha_f F_f), alpha_f the mean of dy/dF_f.

    y is the logit: the score would only scale the map of an image. At the last layer of the CAM
    network it is the positive part of the class map over the number of positions.

    Parameters
    ----------
    image : (1, C, h, w) float in [0, 1]

    Returns
    -------
    values : (h, w)
        At least 0, bilinear from the layer's positions.

    Raises
    ------
    ModelError
        If there is no such layer, or it gives no maps.
    """
    layer = find_layer(model, config.layer) if config.layer else model.last_layer
    weights, maps = _weigh(TargetLogit(model, target), image, layer)
    found = torch.einsum("bfhw,bf->bhw", maps, weights).relu()
    return stretch_over(image, found)[0]


def stretch_over(image: Tensor, maps: Tensor) -> Tensor:
    """Stretch maps over an image: (n, h', w') -> (n, h, w), bilinear."""
    size = image.shape[-2:]
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def find_layer(model: PatchClassifier, name: str) -> nn.Module:
    """Find a layer by its name.

    Raises
    ------
    ModelError
        If there is none, naming those there are.
    """
    layers: dict[str, nn.Module] = dict(model.named_modules())
    if name not in layers:
        known = ", ".join(
            key for key, layer in layers.items() if key and not len(list(layer.children()))
        )
        raise ModelError(f"{type(model).__name__} has no layer '{name}'; it has: {known}")
    return layers[name]


def keep_output(model: nn.Module, image: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Run a model and keep what one layer puts out.

    Returns
    -------
    outputs : (n,)
        Of the model.
    maps : (n, f, h', w')
        Of the layer; where gradients start.

    Raises
    ------
    ModelError
        If the layer does not give maps once for each image.
    """
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]  # what is before the layer needs no gradients

    hook = layer.register_forward_hook(keep)
    try:
        outputs = model(image)
    finally:
        hook.remove()
    if len(kept) != 1 or kept[0].ndim != 4 or len(kept[0]) != len(image):
        raise ModelError(
            "this method needs a layer that gives maps (n, f, h, w) once for each image; take one "
            "of model.features, or of a ResNet layer1 to layer4"
        )
    return outputs, kept[0]


def _weigh(model: nn.Module, image: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return alpha, (n, f), and the layer's output, (n, f, h', w')."""
    outputs, maps = keep_output(model, image, layer)
    # Images do not touch one another: the gradient of the sum has each one's own.
    (gradients,) = torch.autograd.grad(outputs.sum(), maps)
    return gradients.mean(dim=(2, 3)), maps.detach()


METHOD = Method(grad_cam, GradCamSettings, low=0, models=(VGGFeatures, ResNetClassifier))
