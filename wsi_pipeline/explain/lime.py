"""LIME: a linear model of which superpixels the logit depends on.

References
----------
.. [1] Ribeiro, Singh, Guestrin, ""Why Should I Trust You?": Explaining the Predictions of Any
   Classifier", KDD 2016. Its code has a cosine kernel of width 0.25 and ridge regression.
.. [2] The lecture: least squares with an L1 penalty (ADALINE), all samples alike.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.segmentation import slic
from sklearn.linear_model import Lasso, LinearRegression, Ridge
from torch import Tensor

from tiling.files import write_json
from wsi_pipeline.csv_files import write_csv
from wsi_pipeline.explain.base import (
    Found,
    Method,
    Settings,
    Target,
    TargetLogit,
    require,
    score_copies,
)
from wsi_pipeline.explain.files import write_png
from wsi_pipeline.models.base import PatchClassifier

_MOST_STEPS = 100_000  # of coordinate descent; a fit takes some dozens


@dataclass(frozen=True)
class LimeSettings(Settings):
    """How the image is divided, and what is fitted."""

    segments: int = 50  # superpixels asked of SLIC
    compactness: float = 10.0  # of SLIC
    samples: int = 1000  # images with some superpixels removed; the first has all
    # uniform: all samples count alike, and weights have an L1 penalty ([2]); cosine: samples count
    # by their nearness to the image, and weights have a squared penalty ([1])
    kernel: Literal["uniform", "cosine"] = "uniform"
    l1: float = 1e-3  # factor of sum |w|, next to half the mean squared error; 0: none
    kernel_width: float = 0.25  # of the cosine distance
    ridge: float = 1.0  # factor of sum w^2, next to the sum of weighted squared errors

    def __post_init__(self) -> None:
        require(
            self.segments >= 2 and self.samples >= 2,
            "lime needs at least 2 segments and 2 samples, got "
            f"segments={self.segments}, samples={self.samples}",
        )
        require(
            self.kernel in ("uniform", "cosine"),
            f"lime's kernel is uniform or cosine, got {self.kernel!r}",
        )
        require(
            min(self.l1, self.ridge) >= 0 and min(self.kernel_width, self.compactness) > 0,
            "lime's l1 and ridge are at least 0, its kernel_width and compactness above, got "
            f"{self.l1}, {self.ridge}, {self.kernel_width}, {self.compactness}",
        )


@dataclass(frozen=True)
class LimeFit:
    """The linear model that was fitted."""

    superpixels: NDArray[np.int64]  # (h, w) from 0
    weights: NDArray[np.float64]  # (k,), of each superpixel's presence
    intercept: float
    r2: float | None  # share of the variance explained, weighted as fitted; None: none to explain

    def write(self, folder: Path, stem: str) -> list[Path]:
        """Write ``.csv``, ``.json`` and the superpixels' numbers as ``_superpixels.png``."""
        ends = (".csv", ".json", "_superpixels.png")
        table, about, picture = (folder / f"{stem}{end}" for end in ends)
        areas = np.bincount(self.superpixels.ravel(), minlength=len(self.weights))
        rows = enumerate(zip(self.weights, areas, strict=True))
        header = ["superpixel", "weight", "area_px"]
        write_csv(table, header, [(k, float(weight), area) for k, (weight, area) in rows])
        write_json(about, {"intercept": self.intercept, "r2": self.r2})
        write_png(picture, self.superpixels.astype(np.uint16))
        return [table, about, picture]


def lime(
    model: PatchClassifier, image: Tensor, *, target: Target, seed: int, config: LimeSettings
) -> Found:
    """Return each pixel the weight of its superpixel: (1, C, h, w) -> (h, w)."""
    pixels = image[0].permute(1, 2, 0).cpu().double().numpy()
    superpixels = divide(pixels, config)
    presence = draw_presence(int(superpixels.max()) + 1, config.samples, seed)
    without = _average_within(image[0], superpixels)
    numbers = torch.from_numpy(superpixels).to(image.device)
    kept = torch.from_numpy(presence).to(image.device)

    def change(number: int) -> Tensor:
        return torch.where(kept[number][numbers], image[0], without)

    logits = score_copies(TargetLogit(model, target), image, config.samples, change)
    weights, intercept, r2 = fit(presence, logits, config)
    fitted = LimeFit(superpixels, weights, intercept, r2)
    return Found(torch.from_numpy(weights[superpixels]), fitted)


def divide(pixels: NDArray[np.float64], config: LimeSettings) -> NDArray[np.int64]:
    """Divide an image into superpixels: (h, w, C) -> (h, w), numbered from 0.

    By SLIC; where that finds one alone (it does on noise), by a regular grid.
    """
    grey = pixels.shape[2] == 1
    found = slic(
        pixels[..., 0] if grey else pixels,
        n_segments=config.segments,
        compactness=config.compactness,
        channel_axis=None if grey else -1,
        start_label=0,
    )
    if found.max() == found.min():
        height, width = found.shape
        side = max(1.0, np.sqrt(height * width / config.segments))
        rows, columns = (max(1, round(length / side)) for length in (height, width))
        row, column = (np.arange(n) * m // n for n, m in ((height, rows), (width, columns)))
        found = row[:, None] * columns + column
    return np.unique(found, return_inverse=True)[1].reshape(found.shape).astype(np.int64)


def draw_presence(superpixels: int, samples: int, seed: int) -> NDArray[np.bool_]:
    """Draw which superpixels each sample has, (samples, superpixels); the first has all."""
    presence = np.random.default_rng(seed).random((samples, superpixels)) < 0.5
    presence[0] = True
    return presence


def _average_within(image: Tensor, superpixels: NDArray[np.int64]) -> Tensor:
    """Return each pixel the mean colour of its superpixel: (C, h, w) -> (C, h, w)."""
    numbers = torch.from_numpy(superpixels).to(image.device).flatten()
    sums = torch.zeros(len(image), int(numbers.max()) + 1, dtype=image.dtype, device=image.device)
    sums.index_add_(1, numbers, image.flatten(1))
    means = sums / torch.bincount(numbers)
    return means[:, numbers].reshape(image.shape)


def fit(
    presence: NDArray[np.bool_], logits: NDArray[np.float64], config: LimeSettings
) -> tuple[NDArray[np.float64], float, float | None]:
    """Fit logits by presence.

    Parameters
    ----------
    presence : (samples, superpixels) bool
    logits : (samples,)

    Returns
    -------
    weights : (superpixels,)
    intercept : float
    r2 : float, optional
        None where all logits are equal.
    """
    x = presence.astype(np.float64)
    counts = np.ones(len(x))
    if config.kernel == "cosine":
        # The cosine between a sample and all ones is the root of the share that is present.
        distance = 1 - np.sqrt(x.mean(axis=1))
        counts = np.exp(-(distance**2) / (2 * config.kernel_width**2))
        model = Ridge(alpha=config.ridge)
    elif config.l1 == 0:
        model = LinearRegression()
    else:
        model = Lasso(alpha=config.l1, max_iter=_MOST_STEPS)
    model.fit(x, logits, sample_weight=counts)
    has_variance = np.ptp(logits) > 0
    r2 = float(model.score(x, logits, sample_weight=counts)) if has_variance else None
    return np.asarray(model.coef_, np.float64), float(model.intercept_), r2


METHOD = Method(lime, LimeSettings)
