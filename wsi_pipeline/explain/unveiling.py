"""Iterative unveiling: what is found is covered, and the model is asked again.

References
----------
.. [1] Bordes, Berthier, Di Jorio, Vincent, Bengio, "Iteratively unveiling new regions of interest
   in Deep Learning models", MIDL 2018. Thresholds, the colour of the cover, borders, and whether
   masks add up are open there; these are ours. At a majority of 0.5 the smoothing would erode
   regions, against the paper: a quarter lets them grow.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import convolve1d
from torch import Tensor

from wsi_pipeline.csv_files import write_csv
from wsi_pipeline.explain.base import Found, Method, Settings, Target, TargetLogit, require
from wsi_pipeline.explain.files import as_grey, lay_out_pictures, stretch, write_arrays, write_png
from wsi_pipeline.explain.guided_smoothgrad import guided_smoothgrad
from wsi_pipeline.explain.smoothgrad import SmoothGradSettings
from wsi_pipeline.models.base import PatchClassifier

Stopped = Literal["probability", "rounds", "empty mask"]


@dataclass(frozen=True)
class UnveilingSettings(Settings):
    """How regions are found, and when there are no more."""

    rounds: int = 5  # at most
    stop: float = 0.5  # ends where the class's probability falls below
    threshold: float = 0.3  # of the saliency, stretched to [0, 1]
    kernel: int = 11  # px, odd: side of the square that smooths
    smoothings: int = 3
    share: float = 0.25  # a pixel stays where so much of its square is marked
    samples: int = 50  # of SmoothGrad
    noise: float = 0.15  # of SmoothGrad

    def __post_init__(self) -> None:
        require(
            self.rounds >= 1 and self.smoothings >= 0,
            f"unveiling needs at least 1 round and 0 smoothings, got rounds={self.rounds}, "
            f"smoothings={self.smoothings}",
        )
        require(
            self.kernel >= 1 and self.kernel % 2 == 1,
            f"unveiling's kernel is an odd number of px, got {self.kernel}",
        )
        for name in ("stop", "threshold", "share"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"unveiling's {name} is in [0, 1], got {value}")
        SmoothGradSettings(self.samples, self.noise)  # its own checks


@dataclass(frozen=True)
class Round:
    """One round: what was asked of, and what was found."""

    image: NDArray[np.float32]  # (h, w, C), the image with what was found before covered
    probability: float  # of the class, of that image
    saliency: NDArray[np.float64]  # (h, w) in [0, 1]
    mask: NDArray[np.bool_]  # (h, w), found in this round
    union: NDArray[np.bool_]  # (h, w), with what was found before


@dataclass(frozen=True)
class Unveiling:
    """All rounds, and how they ended."""

    target: Target
    rounds: tuple[Round, ...]
    image: NDArray[np.float32]  # (h, w, C), with all that was found covered
    probability: float  # of the class, of that image
    stopped: Stopped

    def write(self, folder: Path, stem: str) -> list[Path]:
        """Write ``.csv``, a row for each round; ``_rounds.png``, the rounds as rows of a strip of
        image, saliency, mask and union; and ``.npz``, all arrays of all rounds."""
        table, strip, arrays = (folder / f"{stem}{e}" for e in (".csv", "_rounds.png", ".npz"))
        header = ["round", "probability", "mask_px", "union_px", "stopped"]
        rows: list[tuple[int, float, int | None, int | None, str | None]] = [
            (number, one.probability, int(one.mask.sum()), int(one.union.sum()), None)
            for number, one in enumerate(self.rounds, start=1)
        ]
        rows.append((len(self.rounds) + 1, self.probability, None, None, self.stopped))
        write_csv(table, header, rows)
        write_png(strip, self._draw())
        names = ("image", "saliency", "mask", "union")
        stacked = {n: np.array([getattr(one, n) for one in self.rounds]) for n in names}
        write_arrays(arrays, stacked | {"last_image": self.image})
        return [table, strip, arrays]

    def _draw(self) -> NDArray[np.uint8]:
        if not self.rounds:  # the class was not predicted
            return as_colour(self.image)
        rows = [
            lay_out_pictures(
                [as_colour(p) for p in (one.image, one.saliency, one.mask, one.union)], columns=4
            )
            for one in self.rounds
        ]
        return lay_out_pictures(rows, columns=1)


def as_colour(picture: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Turn an image or a map in [0, 1], or a mask, into 8-bit RGB."""
    grey = as_grey(picture.astype(np.float32))
    flat = grey[..., None] if grey.ndim == 2 else grey
    return np.broadcast_to(flat, (*flat.shape[:2], 3)).copy()


def smooth(mask: NDArray[np.bool_], *, kernel: int, times: int, share: float) -> NDArray[np.bool_]:
    """Keep, several times, the pixels whose square is marked to a share.

    Parameters
    ----------
    mask : (h, w) bool
    kernel : int
        Side of the square, odd; at borders, pixels outside do not count.
    times : int
    share : float
        At least so much.

    Returns
    -------
    mask : (h, w) bool

    Examples
    --------
    >>> specks = np.zeros((40, 40), bool)
    >>> specks[10:15, 10:15] = True
    >>> int(smooth(specks, kernel=11, times=3, share=0.25).sum())
    0
    """
    pixels = _count(np.ones(mask.shape, np.int64), kernel)
    for _ in range(times):
        mask = _count(mask.astype(np.int64), kernel) >= share * pixels
    return mask


def _count(values: NDArray[np.int64], kernel: int) -> NDArray[np.int64]:
    """Sum over squares; zeros outside."""
    ones = np.ones(kernel, np.int64)
    return np.asarray(
        convolve1d(convolve1d(values, ones, axis=0, mode="constant"), ones, axis=1, mode="constant")
    )


def unveil(
    model: PatchClassifier, image: Tensor, *, target: Target, seed: int, config: UnveilingSettings
) -> Found:
    """Unveil region after region: (1, C, h, w) -> (h, w) in [0, 1].

    The map is 1 where the first round found something, less by 1 / rounds with each later round,
    and 0 elsewhere.
    """
    logit = TargetLogit(model, target)
    cover = image.mean(dim=(2, 3), keepdim=True)
    union = np.zeros(image.shape[-2:], bool)
    values = np.zeros(union.shape)
    rounds: list[Round] = []
    shown, probability = image, _probability(logit, image)
    stopped: Stopped = "probability"
    while probability >= config.stop:
        if len(rounds) == config.rounds:
            stopped = "rounds"
            break
        saliency = _find_saliency(model, shown, target, seed, config)
        mask = smooth(
            saliency >= config.threshold,
            kernel=config.kernel,
            times=config.smoothings,
            share=config.share,
        )
        values[mask & ~union] = 1 - len(rounds) / config.rounds
        union = union | mask
        rounds.append(Round(_as_array(shown), probability, saliency, mask, union))
        if not mask.any():
            stopped = "empty mask"
            break
        covered = torch.from_numpy(union).to(image.device)
        shown = torch.where(covered, cover, image)
        probability = _probability(logit, shown)
    found = Unveiling(target, tuple(rounds), _as_array(shown), probability, stopped)
    return Found(torch.from_numpy(values), found)


def _probability(logit: TargetLogit, image: Tensor) -> float:
    with torch.no_grad():
        return float(logit(image).cpu().double().sigmoid())


def _find_saliency(
    model: PatchClassifier, image: Tensor, target: Target, seed: int, config: UnveilingSettings
) -> NDArray[np.float64]:
    """Stretch guided backpropagation with SmoothGrad to [0, 1]; what is constant marks nothing."""
    torch.manual_seed(seed)
    smooth_config = SmoothGradSettings(config.samples, config.noise)
    found = guided_smoothgrad(
        model, image.detach().clone(), target=target, seed=seed, config=smooth_config
    )
    values = found.detach().cpu().double().numpy()
    return stretch(values) if np.ptp(values) > 0 else np.zeros(values.shape)


def _as_array(image: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = image.detach()[0].permute(1, 2, 0).float().cpu().numpy()
    return array


METHOD = Method(unveil, UnveilingSettings, low=0, high=1, of_predicted=True)
