"""Grad-CAM: where in an image the features lie that raise a network's logit.

References
----------
.. [1] Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra, "Grad-CAM: Visual Explanations from Deep
   Networks via Gradient-based Localization", ICCV 2017, equations 1 and 2.
.. [2] The lecture and PatchNet paper 2 take the last convolution after its ReLU, before the last
   pooling: 14 x 14 positions of an image of 224 px.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.vgg import VGGFeatures


def grad_cam(model: VGGFeatures, images: Tensor, *, layer: nn.Module | None = None) -> Tensor:
    """Map what speaks for class 1: ReLU(sum_f alpha_f F_f), alpha_f the mean of dy/dF_f.

    Parameters
    ----------
    model : VGGFeatures
        In evaluation mode: a VGG, or the CAM network. y is its logit; the score would only scale
        the map of each image.
    images : (n, C, H, W) float in [0, 1]
        On the device of the model.
    layer : nn.Module, optional
        Of the model, whose output is F, (n, f, h, w). Default: the last ReLU of its convolutions,
        before the last pooling.

    Returns
    -------
    maps : (n, H, W)
        At least 0, bilinear from the layer's positions to the images' size; of a model that crops,
        to that of the crop.

    Raises
    ------
    ModelError
        If the model is being trained, or the layer gives no maps.

    Notes
    -----
    At the CAM network's last layer it is the positive part of its class map over the number of
    positions, before both are stretched.
    """
    weights, maps = _weigh(model, images, layer or model.features[-2])
    found = torch.einsum("bfhw,bf->bhw", maps, weights).relu()[:, None]
    size = model.prepare(images).shape[-2:]
    return F.interpolate(found, size=size, mode="bilinear", align_corners=False)[:, 0]


def _weigh(model: VGGFeatures, images: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Give alpha, (n, f), and the layer's output, (n, f, h, w)."""
    if model.training:
        raise ModelError("Grad-CAM of a model in training is random (dropout); call model.eval()")
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0]  # what is before the layer needs no gradients

    hook = layer.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = model(images)
    finally:
        hook.remove()
    if len(kept) != 1 or kept[0].ndim != 4:
        raise ModelError(
            "Grad-CAM needs a layer that gives maps (n, f, h, w) once for each image; take one of "
            "model.features"
        )
    # Images do not touch one another: the gradient of the sum has each one's own.
    (gradients,) = torch.autograd.grad(logits.sum(), kept[0])
    return gradients.mean(dim=(2, 3)), kept[0].detach()
