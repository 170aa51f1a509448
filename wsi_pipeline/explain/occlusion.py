"""Occlusion: how much of the logit is lost when a window of the image is covered.

References
----------
.. [1] Zeiler, Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section
   4.2. Window, step and colour of the cover are open there; these are ours.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wsi_pipeline.explain.base import (
    Method,
    Settings,
    Target,
    TargetLogit,
    require,
    score_copies,
)
from wsi_pipeline.models.base import PatchClassifier


@dataclass(frozen=True)
class OcclusionSettings(Settings):
    """What is covered, and by what."""

    window: float = 1 / 14  # side of the window, of the image's shorter side: 16 of 224 px
    stride: float = 1 / 28  # step between windows, likewise; at most the window
    fill: Literal["mean", "zero"] = "mean"  # mean of each channel over the image

    def __post_init__(self) -> None:
        require(
            0 < self.stride <= self.window <= 1,
            "occlusion's stride and window are shares of a side, 0 < stride <= window <= 1, got "
            f"stride={self.stride}, window={self.window}",
        )
        require(
            self.fill in ("mean", "zero"), f"occlusion's fill is mean or zero, got {self.fill!r}"
        )


def occlusion(
    model: PatchClassifier,
    image: Tensor,
    *,
    target: Target,
    seed: int,
    config: OcclusionSettings,
) -> Tensor:
    """Return y(I) - y(I covered), averaged over a pixel's windows: (1, C, h, w) -> (h, w)."""
    height, width = image.shape[-2:]
    side, step = (max(1, round(share * min(height, width))) for share in _shares(config))
    corners = [
        (top, left)
        for top in place_windows(height, side, step)
        for left in place_windows(width, side, step)
    ]
    mean = image[0].mean(dim=(1, 2), keepdim=True)
    cover = mean if config.fill == "mean" else torch.zeros_like(mean)

    def change(number: int) -> Tensor:
        copy = image[0].clone()
        if number:  # the first is the image itself
            top, left = corners[number - 1]
            copy[:, top : top + side, left : left + side] = cover
        return copy

    logits = score_copies(TargetLogit(model, target), image, len(corners) + 1, change)
    sums = torch.zeros(2, height, width, dtype=torch.float64)  # of losses, and of windows
    for (top, left), logit in zip(corners, logits[1:], strict=True):
        window = sums[:, top : top + side, left : left + side]
        window += torch.tensor([logits[0] - logit, 1.0], dtype=torch.float64)[:, None, None]
    return sums[0] / sums[1]


def _shares(config: OcclusionSettings) -> tuple[float, float]:
    return config.window, config.stride


def place_windows(length: int, side: int, step: int) -> list[int]:
    """Place windows along a line; the last one is flush with its end.

    Examples
    --------
    >>> place_windows(10, 4, 3), place_windows(11, 4, 3)
    ([0, 3, 6], [0, 3, 6, 7])
    """
    last = length - side
    starts = list(range(0, last + 1, step))
    return starts if starts[-1] == last else [*starts, last]


METHOD = Method(occlusion, OcclusionSettings)
