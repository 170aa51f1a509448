"""Base classes of all patch classifiers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from wsi_pipeline.models.preprocess import Preprocess


class PatchClassifier(nn.Module, ABC):
    """A network that scores patches.

    A model takes plain images and does its own normalisation, so that callers need not know the
    preprocessing it was trained with.

    Attributes
    ----------
    options : dict
        Arguments of ``build_model(name, **options)`` for the same network, as JSON values.
    preprocess : Preprocess, optional
        Applied to images before the network's own normalisation; part of `options`.
    threshold, strict
        Decision rule on single images: class 1 iff score >= threshold, or > if strict.
    """

    options: dict[str, Any]
    preprocess: Preprocess | None = None
    threshold: ClassVar[float] = 0.5
    strict: ClassVar[bool] = False

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

    @classmethod
    def check_size(cls, size: tuple[int, int], **options: Any) -> None:
        """Refuse options that do not fit the images to train on.

        Parameters
        ----------
        size : (height, width), px
        **options
            Of the model.

        Raises
        ------
        ModelError
        """

    def prepare(self, x: Tensor) -> Tensor:
        """Prepare images for the network: (B, C, H, W) -> (B, C, h, w)."""
        return x if self.preprocess is None else self.preprocess(x)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy of a batch.

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
        """Return F(I) in [0, 1] for each image, shape (B,)."""
        logits: Tensor = self(x)
        return logits.float().sigmoid()


class BlockClassifier(PatchClassifier):
    """A classifier made of consecutive blocks and a head: what fine-tuning can freeze in parts.

    Its loss is the cross-entropy of its logits.

    Attributes
    ----------
    n_blocks : int
        Number of blocks, the head not included.
    """

    n_blocks: ClassVar[int]

    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """Return the blocks from the input to the head; parameters in none are the head's."""

    @abstractmethod
    def encode(self, x: Tensor, n_blocks: int) -> Tensor:
        """Apply preprocessing and the first blocks: (B, 3, H, W) in [0, 1] -> (B, C, h, w)."""

    @abstractmethod
    def decode(self, maps: Tensor, n_blocks: int) -> Tensor:
        """Apply the blocks after the first `n_blocks` and the head: (B, C, h, w) -> (B,) logits."""
