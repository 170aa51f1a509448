"""Deletion and insertion: how a score falls and rises as pixels go and come in a map's order.

Deletion starts from the image and covers its pixels, the highest of the map first, by the mean of
each channel; insertion starts from a blurred image and brings the pixels back in the same order.
Both curves are of the probability of the class that is explained, against the share of pixels. A
map that orders pixels well has a small area under the first and a large one under the second. No
mask is needed: they measure how well a map describes the model, not whether the model is right.

References
----------
.. [1] Petsiuk, Das, Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models",
   BMVC 2018, section 4.2. Their code blurs by a Gaussian of 5 px, cut to 11 x 11, takes 224 steps
   and deletes to 0; the paper names constant greys as another cover, and the mean of each channel
   is ours. Pixels of one value are in random order here; there, as a sort leaves them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor
from torch.nn import functional as F

from wsi_pipeline.errors import ModelError
from wsi_pipeline.explain.base import (
    Target,
    TargetLogit,
    as_it_was,
    crop_as,
    require,
    score_copies,
    to_tensor,
)
from wsi_pipeline.models.base import PatchClassifier


@dataclass(frozen=True)
class CurveSettings:
    """How finely the curves are drawn, and the start of insertion."""

    steps: int = 224  # of equally many pixels; each curve takes one forward pass more
    blur_px: float = 5.0  # standard deviation of the Gaussian that insertion starts from
    kernel_px: int = 11  # side of the square it is cut to; odd

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"curves have at least 1 step, got steps={self.steps}")
        require(
            self.blur_px > 0 and self.kernel_px % 2 == 1,
            "the blur's deviation is above 0 and its side odd, got "
            f"blur_px={self.blur_px}, kernel_px={self.kernel_px}",
        )


@dataclass(frozen=True)
class Curves:
    """Probabilities of the class that is explained, by the share of pixels."""

    share: NDArray[np.float64]  # (steps + 1,) from 0 to 1
    deletion: NDArray[np.float64]  # (steps + 1,) that share is covered
    insertion: NDArray[np.float64]  # (steps + 1,) that share is back

    @property
    def deletion_auc(self) -> float:
        """Area under the deletion curve, in [0, 1]: lower is better."""
        return float(np.trapezoid(self.deletion, self.share))

    @property
    def insertion_auc(self) -> float:
        """Area under the insertion curve, in [0, 1]: higher is better."""
        return float(np.trapezoid(self.insertion, self.share))


def trace_curves(
    model: PatchClassifier,
    pixels: NDArray[Any],
    values: NDArray[np.floating[Any]],
    *,
    target: Target = 1,
    seed: int = 0,
    config: CurveSettings | None = None,
) -> Curves:
    """Trace the deletion and the insertion curve of a map.

    Parameters
    ----------
    model : PatchClassifier
        On any device, in any mode; it is left as it was.
    pixels : (H, W, C) uint8, or float in [0, 1]
    values : (h, w)
        A map of the image, or of the part of it that the model sees; only its order counts.
    target : 0 or 1
        Class whose probability is traced.
    seed : int
        Of the order of pixels that have one value.
    config : CurveSettings, optional
        None: the defaults.

    Raises
    ------
    ModelError
        If the map is not of the shape that the model sees.
    """
    how = CurveSettings() if config is None else config
    weight = next(model.parameters())
    image = crop_as(model, to_tensor(pixels, weight))
    if values.shape != image.shape[-2:]:
        raise ModelError(f"map shape {values.shape} does not match image {tuple(image.shape[-2:])}")
    rank = torch.from_numpy(rank_pixels(values, seed)).to(image.device)
    counts = np.rint(np.linspace(0, values.size, how.steps + 1)).astype(np.int64)
    mean = image[0].mean(dim=(1, 2), keepdim=True).expand_as(image[0])
    curves = []
    with as_it_was(model, weight.device):
        logit = TargetLogit(model, target)
        for first, then in ((image[0], mean), (blur(image, how)[0], image[0])):

            def change(step: int, first: Tensor = first, then: Tensor = then) -> Tensor:
                return torch.where(rank < int(counts[step]), then, first)

            curves.append(expit(score_copies(logit, image, len(counts), change)))
    return Curves(counts / values.size, *curves)


def rank_pixels(values: NDArray[np.floating[Any]], seed: int) -> NDArray[np.int64]:
    """Rank pixels from the highest, 0, on; equal ones in random order: (h, w) -> (h, w).

    Examples
    --------
    >>> rank_pixels(np.array([[0.1, 0.5], [0.9, 0.3]]), seed=0).tolist()
    [[3, 1], [0, 2]]
    """
    flat = values.ravel()
    order = np.lexsort((np.random.default_rng(seed).permutation(flat.size), -flat))
    rank = np.empty(flat.size, np.int64)
    rank[order] = np.arange(flat.size)
    return rank.reshape(values.shape)


def blur(image: Tensor, config: CurveSettings) -> Tensor:
    """Blur an image by a Gaussian; its border is repeated: (1, C, h, w) -> (1, C, h, w)."""
    half = config.kernel_px // 2
    offset = torch.arange(-half, half + 1, dtype=image.dtype, device=image.device)
    line = torch.exp(-(offset**2) / (2 * config.blur_px**2))
    line = line / line.sum()
    padded = F.pad(image, (half,) * 4, mode="replicate").transpose(0, 1)  # (C, 1, ...)
    rows = F.conv2d(padded, line[None, None, None])
    return F.conv2d(rows, line[None, None, :, None]).transpose(0, 1)
