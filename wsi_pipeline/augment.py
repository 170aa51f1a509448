"""Random flips and colour perturbations of a batch, on its device, seeded.

References
----------
.. [1] Lecture on cancer detection in whole-slide images, "Dataset augmentation": random vertical
   and horizontal flips, random colour perturbations. It names no sizes; `AugmentConfig` does.
"""

import torch
from torch import Tensor

from wsi_pipeline.settings import AugmentConfig

# ITU-R BT.601 luma, the grey that saturation and contrast turn towards.
_LUMA = (0.299, 0.587, 0.114)


class Augment:
    """Changes each patch of a batch by itself.

    The random numbers are drawn on the CPU, so a run on another device draws the same ones.

    Parameters
    ----------
    config : AugmentConfig
    seed : int
        The same seed gives the same changes, call by call.
    """

    def __init__(self, config: AugmentConfig, *, seed: int) -> None:
        self._config = config
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, x: Tensor) -> Tensor:
        """Change a batch.

        Parameters
        ----------
        x : (B, 3, H, W) float in [0, 1]

        Returns
        -------
        x : (B, 3, H, W) float in [0, 1]
            A new tensor; the order is hue, saturation, brightness, contrast, flips.
        """
        config = self._config
        if config.hue:
            x = turn_hue(x, self._spread(x, config.hue))
        if config.saturation:
            x = _blend(_grey(x), x, 1 + self._spread(x, config.saturation))
        if config.brightness:
            x = (x * (1 + self._spread(x, config.brightness))).clamp(0, 1)
        if config.contrast:
            mean = _grey(x).mean(dim=(2, 3), keepdim=True)
            x = _blend(mean, x, 1 + self._spread(x, config.contrast))
        if config.flips:
            x = _flip_some(x, self._coins(x), dim=3)
            x = _flip_some(x, self._coins(x), dim=2)
        return x

    def _spread(self, x: Tensor, most: float) -> Tensor:
        """One number per patch in [-most, most]: (B, 1, 1, 1)."""
        drawn = torch.rand(len(x), generator=self._generator) * 2 - 1
        return (drawn * most).to(x.device, x.dtype)[:, None, None, None]

    def _coins(self, x: Tensor) -> Tensor:
        drawn = torch.rand(len(x), generator=self._generator) < 0.5
        return drawn.to(x.device)[:, None, None, None]


def _grey(x: Tensor) -> Tensor:
    weights = torch.tensor(_LUMA, dtype=x.dtype, device=x.device)[None, :, None, None]
    return (x * weights).sum(dim=1, keepdim=True)


def _blend(towards: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """Go from `towards` (factor 0) through `x` (factor 1) and beyond."""
    return (towards + (x - towards) * factor).clamp(0, 1)


def _flip_some(x: Tensor, flipped: Tensor, *, dim: int) -> Tensor:
    return torch.where(flipped, x.flip(dim), x)


def turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turn each patch's colours around the grey axis.

    A rotation of RGB space around (1, 1, 1), clipped to [0, 1]: the hue circle without the
    corners of HSV, and linear, so it is one small matrix product per patch. Greys stay as they are.

    Parameters
    ----------
    x : (B, 3, H, W) float in [0, 1]
    turn : (B, 1, 1, 1)
        In full turns: 1/3 turns red to green.
    """
    angle = turn.flatten() * (2 * torch.pi)
    cosine, sine = angle.cos(), angle.sin()
    # Rodrigues' formula for the axis (1, 1, 1) / sqrt 3; rows are the new R, G, B.
    same = (1 + 2 * cosine) / 3
    back = (1 - cosine) / 3 - sine / 3**0.5
    forth = (1 - cosine) / 3 + sine / 3**0.5
    matrix = torch.stack(
        [
            torch.stack([same, back, forth], dim=1),
            torch.stack([forth, same, back], dim=1),
            torch.stack([back, forth, same], dim=1),
        ],
        dim=1,
    )
    return torch.einsum("bij,bjhw->bihw", matrix, x).clamp(0, 1)
