"""Activation maximisation: the image that raises a class's logit most.

Of the model alone; no image is needed.

References
----------
.. [1] Simonyan, Vedaldi, Zisserman, "Deep Inside Convolutional Networks: Visualising Image
   Classification Models and Saliency Maps", ICLR workshop 2014, section 2: maximises the logit,
   not the score, minus lambda times the squared length of the image.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_pipeline.csv_files import write_csv
from wsi_pipeline.explain.base import Settings, Target, TargetLogit, as_it_was, require
from wsi_pipeline.explain.files import as_grey, write_arrays, write_png
from wsi_pipeline.models.base import PatchClassifier
from wsi_pipeline.models.patchnet import PatchNet
from wsi_pipeline.models.resnet import ResNetClassifier
from wsi_pipeline.models.vgg import VGGFeatures

_FAINT = 1e-2  # standard deviation of noise where there is no gradient to start with


@dataclass(frozen=True)
class MaximisationSettings(Settings):
    """How the image is sought."""

    penalty: float = 1e-2  # lambda, of the sum of squares over the normalised image
    lr: float = 0.05  # of Adam
    steps: int = 256

    def __post_init__(self) -> None:
        require(
            self.penalty > 0 and self.lr > 0 and self.steps >= 1,
            "activation maximisation needs a penalty and an lr above 0 and at least 1 step, got "
            f"penalty={self.penalty}, lr={self.lr}, steps={self.steps}",
        )


@dataclass(frozen=True)
class Maximised:
    """The image that was found."""

    normalised: NDArray[np.float32]  # (H, W, C), as the network's first layer sees it
    image: NDArray[np.float32]  # (H, W, C), the same as an image in [0, 1]; clipped
    objective: NDArray[np.float64]  # (steps + 1,), before each step and at the end

    def write(self, folder: Path, stem: str) -> list[Path]:
        """Write ``.npz`` with ``normalised`` and ``image``, ``.png``, and ``_curve.csv``."""
        arrays, picture, curve = (folder / f"{stem}{e}" for e in (".npz", ".png", "_curve.csv"))
        write_arrays(arrays, {"normalised": self.normalised, "image": self.image})
        grey = as_grey(self.image)
        write_png(picture, grey[..., 0] if grey.shape[2] == 1 else grey)
        write_csv(curve, ["step", "objective"], enumerate(float(v) for v in self.objective))
        return [arrays, picture, curve]


def maximise_activation(
    model: PatchClassifier,
    size: tuple[int, int],
    *,
    channels: int = 3,
    target: Target = 1,
    seed: int = 0,
    config: MaximisationSettings | None = None,
) -> Maximised:
    """Seek max_z y(z) - lambda |z|^2, from z = 0: an image of the mean colour.

    z is the image as the network normalises it; preprocessing before that is passed over. Where y
    is flat at 0 (a network without biases has all its ReLUs off), it starts from faint noise.

    Parameters
    ----------
    model : PatchClassifier
        It is left as it was.
    size : (height, width), px
    channels : int
        3, or 1 for models of grey images.
    target : 0 or 1
        Of class 0 the logit is -y.
    seed : int
        Of the noise.
    config : optional
        None: the defaults.

    Returns
    -------
    found : Maximised
    """
    chosen = config or MaximisationSettings()
    weight = next(model.parameters())
    mean, std = _normalisation(model)
    logit = TargetLogit(_without_preprocessing(model), target)

    def objective(z: Tensor) -> Tensor:
        total: Tensor = logit(z * std + mean).sum() - chosen.penalty * z.square().sum()
        return total

    z = torch.zeros(1, channels, *size, dtype=weight.dtype, device=weight.device)
    adam = torch.optim.Adam([z], lr=chosen.lr, maximize=True)
    values = []
    with as_it_was(model, weight.device):
        z.requires_grad_()
        if not torch.autograd.grad(objective(z), z)[0].any():
            with torch.no_grad():
                noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed))
                z.copy_(_FAINT * noise)
        for _ in range(chosen.steps):
            value = objective(z)
            values.append(value.item())
            (z.grad,) = torch.autograd.grad(value, z)
            adam.step()
        values.append(objective(z).item())
    image = (z * std + mean).detach().clamp(0, 1)
    return Maximised(_as_array(z), _as_array(image), np.array(values))


def _normalisation(model: PatchClassifier) -> tuple[Tensor | float, Tensor | float]:
    return (
        (model.mean, model.std) if isinstance(model, VGGFeatures | ResNetClassifier) else (0.0, 1.0)
    )


def _without_preprocessing(model: PatchClassifier) -> PatchClassifier:
    """Return the same network, weights shared, that takes images as they are."""
    bare = copy.copy(model)
    bare.preprocess = None
    if isinstance(bare, PatchNet):
        bare.normalise = "unit"
    return bare


def _as_array(images: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = images.detach()[0].permute(1, 2, 0).float().cpu().numpy()
    return array
