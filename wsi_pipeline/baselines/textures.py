"""Classic texture and shape features, and the linear models on them that PatchNet is compared with.

References
----------
.. [1] PatchNet paper 1, appendix B: PFTAS, Haralick and Zernike, their seven combinations, SVM and
   logistic regression; features by mahotas (Coelho, "Mahotas", J. Open Research Software 2013).
.. [2] PatchNet paper 2, appendix F: logistic regression on area, eccentricity, roundness, local
   binary patterns (8 points, radius 4) and PFTAS.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import mahotas
import numpy as np
from mahotas import features as mh
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from wsi_pipeline.errors import ModelError

Classifier = Literal["svm", "logistic"]

ZERNIKE_DEGREE = 8  # mahotas's own default: 25 moments
LBP_RADIUS, LBP_POINTS = 4, 8  # [2]: 36 patterns up to rotation

# [1], tables 1 and 2: all combinations of three kinds of features.
COMBINATIONS: tuple[tuple[str, ...], ...] = (
    ("pftas", "haralick"),
    ("pftas", "zernike", "haralick"),
    ("pftas",),
    ("pftas", "zernike"),
    ("zernike", "haralick"),
    ("haralick",),
    ("zernike",),
)
NUCLEI = ("shape", "lbp", "pftas")  # [2], appendix F; a logistic regression

# ------------------------------------------------------------ features


def pftas(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Parameter-free threshold adjacency statistics: (H, W, C) uint8 -> (54 * C,).

    Each channel is passed on its own and the results are concatenated, channel 0 first. mahotas
    accepts (H, W, 3) too, but as a volume of three planes: its 162 values then count neighbours
    across channels and apply one threshold to all three.
    """
    channels = np.moveaxis(image, 2, 0)
    found = [mh.pftas(np.ascontiguousarray(channel)) for channel in channels]
    return np.concatenate(found).astype(np.float64)


def haralick(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Haralick's features of the luma, the mean of four directions: (13,)."""
    return np.asarray(mh.haralick(to_grey(image), return_mean=True), np.float64)


def zernike(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Zernike moments of the luma in the largest circle around its centre of mass: (25,).

    The papers give no radius; half of the shorter side is ours. A black image has none: zeros.
    """
    grey = to_grey(image)
    radius = min(grey.shape) // 2
    if radius < 1 or not grey.any():
        n = (ZERNIKE_DEGREE // 2 + 1) ** 2  # moments up to an even degree
        return np.zeros(n)
    return np.asarray(mh.zernike_moments(grey, radius, degree=ZERNIKE_DEGREE), np.float64)


def lbp(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Local binary patterns of the luma, as shares of the pixels: (36,)."""
    counts = np.asarray(mh.lbp(to_grey(image), LBP_RADIUS, LBP_POINTS), np.float64)
    shares: NDArray[np.float64] = counts / counts.sum()
    return shares


def shape(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Area (px), eccentricity and roundness of an object: (3,).

    mahotas's roundness is perimeter^2 / (4 pi area): it grows with elongation, and is not the
    usual 4 pi area / perimeter^2.
    """
    if not mask.any():
        raise ModelError("a mask without an object has no shape; check the segmentation")
    values = (np.count_nonzero(mask), mh.eccentricity(mask), mh.roundness(mask))
    return np.array(values, np.float64)


def to_grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Take the luma of an image, whole numbers as mahotas wants them: (H, W, C) -> (H, W)."""
    if image.shape[2] == 1:
        return np.ascontiguousarray(image[..., 0])
    grey: NDArray[np.uint8] = np.round(mahotas.colors.rgb2grey(image)).clip(0, 255).astype(np.uint8)
    return grey


FEATURES: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.float64]]] = {
    "pftas": pftas,
    "haralick": haralick,
    "zernike": zernike,
    "lbp": lbp,
}


def extract_features(
    image: NDArray[np.uint8],
    names: Sequence[str],
    *,
    mask: NDArray[np.bool_] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Compute kinds of features of one image.

    Parameters
    ----------
    image : (H, W, 1 or 3) uint8
    names : sequence of str
        Of `FEATURES`, or ``shape``.
    mask : (H, W) bool, optional
        True on the object; for ``shape``.

    Raises
    ------
    ModelError
        If there is no such kind, the image is of another type or a single row or column of pixels,
        or the mask is missing or empty.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ModelError(
            f"features are of (H, W, 1 or 3) uint8 images, got {image.shape} {image.dtype}"
        )
    if min(image.shape[:2]) < 2:  # no neighbours in some direction
        raise ModelError(
            f"features need at least 2 x 2 px, got {image.shape[1]} x {image.shape[0]}; leave the "
            "image out"
        )
    image = np.array(image)  # mahotas refuses arrays that are read-only, or views
    found: dict[str, NDArray[np.float64]] = {}
    for name in names:
        if name == "shape":
            if mask is None:
                raise ModelError("shape features need a mask of the object")
            found[name] = shape(mask)
        elif name in FEATURES:
            found[name] = FEATURES[name](image)
        else:
            raise ModelError(f"unknown features '{name}'; known: shape, {', '.join(FEATURES)}")
    return found


# ------------------------------------------------------------ classifiers


def fit_classifier(
    kind: Classifier, x: NDArray[np.float64], y: NDArray[np.integer[Any]]
) -> Pipeline:
    """Fit a linear model on standardised features; mean and deviation are those of `x` alone.

    Parameters
    ----------
    kind : {"svm", "logistic"}
    x : (n, features)
        Training data only.
    y : (n,) 0 or 1
    """
    if np.unique(y).size < 2:
        raise ModelError("a classifier needs images of both classes to learn from")
    model = SVC(kernel="linear") if kind == "svm" else LogisticRegression(max_iter=10_000)
    pipeline = Pipeline([("scale", StandardScaler()), ("classify", model)])
    pipeline.fit(x, y)
    return pipeline


@dataclass(frozen=True)
class Row:
    """One model on one set of images."""

    classifier: Classifier
    features: tuple[str, ...]


def list_rows(*, with_shape: bool) -> list[Row]:
    """List the models of both papers: seven combinations each, and that of nuclei."""
    rows = [Row(kind, names) for kind in ("svm", "logistic") for names in COMBINATIONS]
    return [*rows, Row("logistic", NUCLEI)] if with_shape else rows
