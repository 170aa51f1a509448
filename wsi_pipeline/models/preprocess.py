"""Preprocessing of every image before a model, in training and in prediction.

Batched, on the device of the images, and deterministic. The preprocessing is part of a model's
options and is stored in its checkpoint. Stains are normalised slide by slide, before this
(`wsi_pipeline.cohort.stain_view`).

References
----------
.. [1] PatchNet paper 1: images are stretched to [0, 1]; centred crops of textures.
.. [2] PatchNet paper 2, section 3: gamma correction of 2.2, then colour constancy.
.. [3] Finlayson, Trezzi, "Shades of Gray and Colour Constancy", CIC 2004: a Minkowski mean of
   order 6 estimates the light.
"""

from typing import get_args

import torch
from torch import Tensor

from wsi_pipeline.config.settings import PreprocessConfig, StainMethod
from wsi_pipeline.errors import ModelError


class Preprocess:
    """Crop, gamma, colour constancy and min-max, in this order, as far as they are enabled."""

    def __init__(self, config: PreprocessConfig) -> None:
        if config.gamma is not None and not config.gamma > 0:
            raise ModelError(f"preprocess: gamma must be above 0, got {config.gamma}")
        if config.crop is not None and min(config.crop) < 1:
            raise ModelError(f"preprocess: crop must be at least 1 x 1 px, got {config.crop}")
        if not config.minkowski >= 1:
            raise ModelError(f"preprocess: minkowski must be at least 1, got {config.minkowski}")
        if config.stain not in (None, *get_args(StainMethod)):
            raise ModelError(
                f"preprocess: stain must be one of {', '.join(get_args(StainMethod))}, got "
                f"{config.stain!r}"
            )
        self.config = config

    def __call__(self, x: Tensor) -> Tensor:
        """Prepare images: (B, C, H, W) float in [0, 1] -> the same, of the crop's size."""
        config = self.config
        if config.crop is not None:
            x = crop_centre(x, config.crop)
        if config.gamma is not None:
            exponent = 1 / config.gamma if config.gamma_mode == "encode" else config.gamma
            x = x.pow(exponent)
        if config.colour_constancy:
            x = shades_of_grey(x, order=config.minkowski).clamp(0, 1)
        return min_max(x) if config.minmax else x


def min_max(x: Tensor) -> Tensor:
    """Stretch each image to [0, 1] over all its channels; a constant image becomes zeros.

    Parameters
    ----------
    x : (B, C, H, W)
    """
    flat = x.flatten(1)
    low, high = (edge(dim=1).values[:, None, None, None] for edge in (flat.min, flat.max))
    span = high - low
    return (x - low) / torch.where(span > 0, span, torch.ones_like(span))


def estimate_light(x: Tensor, *, order: float = 6.0) -> Tensor:
    """Estimate the colour of the light: each channel's Minkowski mean, of length 1 in all.

    Parameters
    ----------
    x : (B, C, H, W) float, not negative
    order : float
        1 is grey-world, infinity would be the brightest value; [3] found 6 best.

    Returns
    -------
    light : (B, C)
        Zeros for a black image.
    """
    most = x.amax(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    mean = (x / most).pow(order).mean(dim=(2, 3)).pow(1 / order)  # scaled: no power underflows
    length = mean.norm(dim=1, keepdim=True)
    return mean / torch.where(length > 0, length, torch.ones_like(length))


def shades_of_grey(x: Tensor, *, order: float = 6.0) -> Tensor:
    """Divide the colour of the light out of images; values above 1 may result.

    A channel that is black everywhere stays so. A grey image, or one of a single channel, is left
    as it is.

    Parameters
    ----------
    x : (B, C, H, W) float, not negative
    """
    factor = estimate_light(x, order=order) * x.shape[1] ** 0.5
    factor = torch.where(factor > 0, factor, torch.ones_like(factor))
    return x / factor[:, :, None, None]


def crop_centre(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut the centre out of images: (B, C, H, W) -> (B, C, height, width).

    Parameters
    ----------
    size : (height, width), px

    Raises
    ------
    ModelError
        If an image is smaller than the crop.
    """
    height, width = size
    if x.shape[-2] < height or x.shape[-1] < width:
        raise ModelError(
            f"an image of {x.shape[-1]} x {x.shape[-2]} px is smaller than the crop of {width} x "
            f"{height} px; set a smaller crop, or a larger size of images"
        )
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]
