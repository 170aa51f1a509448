"""ProtoPNet: a network that compares parts of an image with learned prototypes.

The convolutions of a VGG and two 1x1 convolutions give a latent vector at each position of an
image. A prototype is a vector of the same space; its similarity to an image is that of the nearest
position. One linear layer without bias adds the similarities up for each class. After training
every prototype is the latent vector of a part of a training image, so that the sum can be read as
"this looks like that" (`wsi_pipeline.training.protopnet`).

References
----------
.. [1] Chen, Li, Tao, Barnett, Su, Rudin, "This Looks Like That: Deep Learning for Interpretable
   Image Recognition", NeurIPS 2019.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsi_pipeline.config.devices import require_float64
from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.prototype_sources import PrototypeSources
from wsi_pipeline.models.vgg import ReLU, VGGFeatures

# [1], section 3 and its code use VGG-16, VGG-19, ResNets and DenseNets; our bodies are the VGGs.
BASES = {"vgg11": "A", "vgg16": "D", "vgg19": "E"}
CLASSES = 2
OWN, OTHER = 1.0, -0.5  # [1], 2.2: first weights of the last layer
EPSILON = 1e-4  # [1], 2.1: keeps the similarity finite where a position equals a prototype


class ProtoPNet(VGGFeatures):
    """A VGG's convolutions, prototypes, and a linear layer of their similarities ([1]).

    Its logit is the difference of the two class logits, so the sigmoid of it is the softmax's
    probability of class 1.

    Parameters
    ----------
    base : "vgg11", "vgg16" or "vgg19"
        Whose convolutions are used; with all five poolings, as in [1].
    width : float
        Factor on their channels.
    prototypes_per_class : int, or one of class 0 and one of class 1
        [1] has 10 for each class; fewer are left after pruning.
    depth : int
        Channels D of the latent space and of a prototype.

    Attributes
    ----------
    prototypes : (P, D, 1, 1)
        Those of class 0 first.
    prototype_class : (P,) int64
    last : nn.Linear
        P -> 2, without bias.
    sources : PrototypeSources
        The parts of training images that the prototypes are; none before the first push.
    """

    prototype_class: Tensor

    def __init__(
        self,
        *,
        base: str = "vgg16",
        width: float = 1.0,
        prototypes_per_class: int | Sequence[int] = 10,
        depth: int = 128,
    ) -> None:
        if base not in BASES:
            raise ModelError(f"ProtoPNet's base is one of {', '.join(BASES)}, got base={base!r}")
        if type(depth) is not int or depth < 1:
            raise ModelError(f"ProtoPNet's depth must be a whole number from 1, got depth={depth}")
        numbers = _numbers(prototypes_per_class)
        super().__init__(width=width, configuration=BASES[base])
        self.options = {
            "base": base,
            "width": width,
            "prototypes_per_class": prototypes_per_class
            if isinstance(prototypes_per_class, int)
            else list(numbers),
            "depth": depth,
        }
        self.add_on = nn.Sequential(
            _make_pointwise(self.channels, depth),
            ReLU(),
            _make_pointwise(depth, depth),
            nn.Sigmoid(),
        )
        self.prototypes = nn.Parameter(torch.rand(sum(numbers), depth, 1, 1))  # [1]: U[0, 1)
        owners = [label for label, n in enumerate(numbers) for _ in range(n)]
        self.register_buffer("prototype_class", torch.tensor(owners, dtype=torch.int64))
        self.sources = PrototypeSources()
        self.last = nn.Linear(sum(numbers), CLASSES, bias=False)
        with torch.no_grad():
            self.last.weight.copy_(self.first_weights())

    def first_weights(self) -> Tensor:
        """Return the last layer's first weights, (2, P): 1 for the own class, else -0.5."""
        labels = torch.arange(CLASSES, device=self.prototype_class.device)[:, None]
        return torch.where(self.prototype_class == labels, OWN, OTHER)

    def latent(self, x: Tensor) -> Tensor:
        """Return the latent vectors of images.

        Parameters
        ----------
        x : (B, 3, H, W) float in [0, 1]
            At least 32 px on each side.

        Returns
        -------
        z : (B, D, H // 32, W // 32) in [0, 1]
        """
        return self._embed(self.feature_maps(x))

    def _embed(self, maps: Tensor) -> Tensor:
        """Apply the add-on layers to the last maps: (B, channels, h, w) -> (B, D, h, w)."""
        with torch.autocast(maps.device.type, enabled=False):  # else z is rounded to 1e-3
            z: Tensor = self.add_on(maps.to(self.prototypes.dtype))
        return z

    def distances(self, x: Tensor) -> Tensor:
        """Return the squared distance of each position to each prototype: -> (B, P, h, w)."""
        return self.distances_of(self.latent(x))

    def distances_of(self, z: Tensor) -> Tensor:
        """Return the squared distances of latent vectors, (B, D, h, w), to the prototypes.

        Of three terms, ``|z|^2 - 2 z p + |p|^2``, the second is a convolution. They cancel where a
        vector is near a prototype, and are therefore added up in float64; what rounding leaves
        below zero is zero.

        Returns
        -------
        distances : (B, P, h, w)
        """
        require_float64(z.device, "a ProtoPNet adds up its distances")
        with torch.autocast(z.device.type, enabled=False):
            z, p = z.double(), self.prototypes.double()
            own = z.square().sum(dim=1, keepdim=True)
            theirs = p.square().sum(dim=1)[None]  # (1, P, 1, 1)
            found = own - 2 * F.conv2d(z, p) + theirs
            return found.clamp_min(0).to(self.prototypes.dtype)

    def similarity_maps(self, x: Tensor) -> Tensor:
        """Return the similarity of each position to each prototype: -> (B, P, h, w)."""
        return similarity(self.distances(x))

    def similarities(self, x: Tensor) -> Tensor:
        """Return each image's similarity to each prototype, at its nearest position: -> (B, P)."""
        return self.similarity_maps(x).amax(dim=(2, 3))

    def top(self, maps: Tensor) -> Tensor:
        """Return the logit of class 1 minus that of class 0 from the last maps: -> (B,)."""
        found = similarity(self.distances_of(self._embed(maps))).amax(dim=(2, 3))
        return difference(self.weigh(found)).to(found.dtype)

    def class_logits(self, x: Tensor) -> Tensor:
        """Return the logits of both classes: -> (B, 2)."""
        similarities = self.similarities(x)
        return self.weigh(similarities).to(similarities.dtype)

    def weigh(self, similarities: Tensor) -> Tensor:
        """Add up similarities, (B, P), by the last layer's weights: -> (B, 2) float64.

        Logits of both classes may be in the hundreds and their difference small.
        """
        with torch.autocast(similarities.device.type, enabled=False):
            return F.linear(similarities.double(), self.last.weight.double())

    def keep(self, kept: Tensor) -> None:
        """Drop prototypes, their weights and sources; `options` then describe the smaller network.

        Parameters
        ----------
        kept : (P,) bool
            At least one is True.
        """
        if kept.shape != self.prototype_class.shape or not kept.any():
            raise ModelError(
                f"ProtoPNet has {len(self.prototype_class)} prototypes and keeps at least one; got "
                f"a mask of shape {tuple(kept.shape)} with {int(kept.sum())} set"
            )
        kept = kept.to(self.prototype_class.device)
        weight = self.last.weight.detach()[:, kept].clone()
        self.prototypes = nn.Parameter(self.prototypes.detach()[kept].clone())
        self.prototype_class = self.prototype_class[kept].clone()
        self.sources.keep(kept)
        self.last = nn.Linear(weight.shape[1], CLASSES, bias=False).to(weight)
        with torch.no_grad():
            self.last.weight.copy_(weight)
        numbers = torch.bincount(self.prototype_class, minlength=CLASSES).tolist()
        self.options = {**self.options, "prototypes_per_class": numbers}


def similarity(distances: Tensor) -> Tensor:
    """Return log((d + 1) / (d + 1e-4)) of squared distances: 9.21 at 0, falling to 0 ([1], 2.1)."""
    # As log(1 + ...), which is exact for large distances too.
    return torch.log1p((1 - EPSILON) / (distances + EPSILON))


def difference(class_logits: Tensor) -> Tensor:
    """Return the logit of class 1 minus that of class 0: (B, 2) -> (B,)."""
    return class_logits[:, 1] - class_logits[:, 0]


def _make_pointwise(inputs: int, outputs: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 1)
    nn.init.normal_(conv.weight, std=math.sqrt(2 / inputs))  # He et al. 2015, as in the VGG
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # Conv2d's bias is there by default
    return conv


def _numbers(prototypes_per_class: Any) -> tuple[int, ...]:
    """Return the number of prototypes of each class."""
    given = prototypes_per_class
    numbers = (given,) * CLASSES if type(given) is int else given
    if (
        not isinstance(numbers, list | tuple)
        or len(numbers) != CLASSES
        or not all(type(n) is int and n >= 0 for n in numbers)
        or not sum(numbers)
    ):
        raise ModelError(
            "ProtoPNet's prototypes_per_class is a number from 1, or one of class 0 and one of "
            f"class 1, not both 0; got {given!r}"
        )
    return tuple(numbers)
