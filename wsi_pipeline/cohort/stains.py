"""Stain normalisation: the colours of a slide mapped to those of a reference.

A map is fitted to some pixels of a slide and applied to all of it, so that a patch changes with its
slide and not with what happens to be in it.

References
----------
.. [1] Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI
   2009. The reference stains and concentrations are those of its authors' code.
.. [2] Reinhard et al., "Color Transfer between Images", IEEE Computer Graphics and Applications
   21(5), 2001.
.. [3] Amgad et al., "Structured crowdsourcing enables convolutional segmentation of histology
   images", Bioinformatics 35(18), 2019: the reference of HistomicsTK,
   of the slide TCGA-A2-A3XS-DX1.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.config.settings import StainMethod
from wsi_pipeline.errors import StainError

LIGHT = 240.0  # grey value of glass [1]
LEAST_DENSITY = 0.15  # natural optical density; pixels with less in any channel are no tissue [1]
PERCENTILE = 1.0  # of the angles that are taken for pure stains; 100 minus this, of amounts [1]
# Columns: optical density of red, green and blue by haematoxylin and by eosin [1].
REFERENCE_STAINS = np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]])
REFERENCE_AMOUNTS = np.array([1.9705, 1.0308])  # 99th percentiles [1]

RGB_TO_LMS = np.array(  # [2]
    [[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]]
)
LMS_TO_LAB = np.array(  # of logarithms [2]
    [
        [1 / 3**0.5, 1 / 3**0.5, 1 / 3**0.5],
        [1 / 6**0.5, 1 / 6**0.5, -2 / 6**0.5],
        [1 / 2**0.5, -1 / 2**0.5, 0.0],
    ]
)
# Mean and deviation of l, alpha and beta, by natural logarithms of values from 0 to 255 [3].
REFERENCE_MEAN = np.array([8.74108109, -0.12440419, 0.0444982])
REFERENCE_DEVIATION = np.array([0.6135447, 0.10989545, 0.0286032])

LEAST_PIXELS = 500  # of tissue, to fit anything
LEAST_ANGLE = 0.05  # radians between two stains
LEAST_COMPONENT = -0.2  # of a stain's density: a stain takes light away, it gives none
LEAST_DEVIATION = 5e-3  # of l, alpha and beta
DARK = 40  # a pixel is dark if no channel reaches this
DARK_SHARE = 0.5  # of the pixels; light through a slide is brighter
PIXELS_AT_ONCE = 65_536  # a patch of 256 px; arrays of larger ones cost more than the arithmetic


class StainMap(ABC):
    """Maps each colour of a slide to another, some pixels at a time."""

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Map colours: (..., 3) uint8 -> the same."""
        flat = pixels.reshape(-1, 3)
        out = np.empty_like(flat)
        for start in range(0, len(flat), PIXELS_AT_ONCE):
            part = slice(start, start + PIXELS_AT_ONCE)
            out[part] = self.map_pixels(flat[part])
        return out.reshape(pixels.shape)

    @abstractmethod
    def map_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Map colours: (n, 3) uint8 -> the same."""


@dataclass(frozen=True)
class MacenkoMap(StainMap):
    """Map of optical densities: two stains to those of the reference, amount by amount."""

    stains: NDArray[np.float64]  # (3, 2) of unit length: haematoxylin and eosin of the slide
    amounts: NDArray[np.float64]  # (2,) 99th percentiles

    def map_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Map colours: (n, 3) uint8 -> the same."""
        density = _DENSITY_32[pixels] @ self._matrix
        np.exp(np.negative(density, out=density), out=density)
        return _as_bytes(density * np.float32(LIGHT) - 1)

    @cached_property
    def _matrix(self) -> NDArray[np.float32]:
        """(3, 3), on the right of densities."""
        scale = np.diag(REFERENCE_AMOUNTS / self.amounts)
        matrix = REFERENCE_STAINS @ scale @ np.linalg.pinv(self.stains)
        return np.asarray(matrix.T, np.float32)


@dataclass(frozen=True)
class ReinhardMap(StainMap):
    """Map of logarithmic cone responses: mean and deviation to those of the reference."""

    mean: NDArray[np.float64]  # (3,) of l, alpha and beta
    deviation: NDArray[np.float64]  # (3,)

    def map_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Map colours: (n, 3) uint8 -> the same."""
        matrix, offset = self._affine
        cones = np.maximum(pixels, 1).astype(np.float32) @ _LMS_32
        np.log(cones, out=cones)
        cones = cones @ matrix + offset
        return _as_bytes(np.exp(cones) @ _RGB_32)

    @cached_property
    def _affine(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(3, 3), on the right of logarithmic cone responses, and (3,) to add."""
        scale = REFERENCE_DEVIATION / self.deviation
        back = np.linalg.inv(LMS_TO_LAB)
        matrix = back @ np.diag(scale) @ LMS_TO_LAB
        offset = back @ (REFERENCE_MEAN - scale * self.mean)
        return np.asarray(matrix.T, np.float32), np.asarray(offset, np.float32)


_LMS_32 = RGB_TO_LMS.T.astype(np.float32)  # on the right of colours
_RGB_32 = np.linalg.inv(RGB_TO_LMS).T.astype(np.float32)  # on the right of cone responses
_DENSITY = -np.log((np.arange(256) + 1) / LIGHT)  # of each grey value [1]
_DENSITY_32 = _DENSITY.astype(np.float32)


def _as_bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def fit_stains(pixels: NDArray[np.uint8], method: StainMethod) -> StainMap:
    """Fit a map of colours to a slide.

    Parameters
    ----------
    pixels : (..., 3) uint8
        Some of the slide's, glass among them or not: only pixels of tissue count, of optical
        density 0.15 and more in each channel.
    method : {"macenko", "reinhard"}

    Returns
    -------
    stain_map : MacenkoMap or ReinhardMap
        Call it on pixels, (..., 3) uint8, of the same slide.

    Raises
    ------
    StainError
        If no stains can be found: too little tissue, a single colour, colours that no two stains
        make, or darkness as in fluorescence.
    """
    flat = pixels.reshape(-1, 3)
    if len(flat) and (flat.max(axis=1) < DARK).mean() > DARK_SHARE:
        raise StainError(
            "most pixels are dark, as in fluorescence; stains are of light through tissue"
        )
    tissue = flat[(_DENSITY[flat] >= LEAST_DENSITY).all(axis=1)]
    if len(tissue) < LEAST_PIXELS:
        raise StainError(
            f"only {len(tissue)} of {len(flat)} pixels are tissue, at least {LEAST_PIXELS} needed"
        )
    return fit_macenko(tissue) if method == "macenko" else fit_reinhard(tissue)


def fit_macenko(tissue: NDArray[np.uint8]) -> MacenkoMap:
    """Find the two stains of tissue [1]: the extreme directions of its optical densities.

    Parameters
    ----------
    tissue : (n, 3) uint8

    Raises
    ------
    StainError
        If there are no two stains.
    """
    density = _DENSITY[tissue]
    values, vectors = np.linalg.eigh(np.cov(density.T))
    plane = vectors[:, :0:-1]  # of the two largest eigenvalues
    plane = plane * np.where(density.mean(axis=0) @ plane < 0, -1, 1)  # the tissue at angle 0
    if values[1] <= 1e-12 * max(values[2], 1e-12):
        raise StainError("the tissue has a single colour")
    along, across = (density @ plane).T
    low, high = np.percentile(np.arctan2(across, along), [PERCENTILE, 100 - PERCENTILE])
    if high - low < LEAST_ANGLE:
        raise StainError(f"the tissue has a single stain ({high - low:.3f} radians from another)")
    ends = plane @ np.array([[np.cos(low), np.cos(high)], [np.sin(low), np.sin(high)]])
    stains = ends if ends[0, 0] > ends[0, 1] else ends[:, ::-1]  # haematoxylin takes more red light
    if stains.min() < LEAST_COMPONENT:
        raise StainError("no two stains make the colours of the tissue")
    amounts = np.percentile(np.linalg.pinv(stains) @ density.T, 100 - PERCENTILE, axis=1)
    if amounts.min() <= 0:
        raise StainError("no two stains make the colours of the tissue")
    return MacenkoMap(stains, amounts)


def fit_reinhard(tissue: NDArray[np.uint8]) -> ReinhardMap:
    """Measure mean and deviation of tissue in the space l, alpha, beta [2].

    Parameters
    ----------
    tissue : (n, 3) uint8

    Raises
    ------
    StainError
        If the colours of the tissue hardly differ.
    """
    lab = np.log(np.maximum(tissue, 1) @ RGB_TO_LMS.T) @ LMS_TO_LAB.T
    deviation = lab.std(axis=0)
    if deviation.min() < LEAST_DEVIATION:
        found = ", ".join(f"{value:.4f}" for value in deviation)
        raise StainError(
            f"the colours of the tissue hardly differ (deviations of l, alpha and beta {found}; "
            f"each must be {LEAST_DEVIATION} or more)"
        )
    return ReinhardMap(lab.mean(axis=0), deviation)
