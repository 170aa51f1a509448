"""What every patch classifier is."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class PatchClassifier(nn.Module, ABC):
    """A network that says how suspicious a patch is.

    A model takes plain images and does its own normalisation, so that whoever calls it need not
    know what it was trained with.

    Attributes
    ----------
    options : dict
        What ``build_model(name, **options)`` needs to build the same network; JSON can hold it.
    """

    options: dict[str, Any]

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Score images.

        Parameters
        ----------
        x : (B, 3, H, W) float in [0, 1]

        Returns
        -------
        logits : (B,)
            Their sigmoid is the score F(I).
        """

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Give the mean cross-entropy of a batch.

        Parameters
        ----------
        x : (B, 3, H, W) float in [0, 1]
        y : (B,) 0 or 1

        Returns
        -------
        loss : scalar
        """
        return F.binary_cross_entropy_with_logits(self(x), y.to(x.dtype))

    def score(self, x: Tensor) -> Tensor:
        """Give F(I) in [0, 1] for each image, shape (B,)."""
        logits: Tensor = self(x)
        return logits.float().sigmoid()
