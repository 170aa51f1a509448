"""How well a heatmap lies on what a person outlined: pixel by pixel, image by image.

Every figure is computed for one image and then averaged over images; pixels of several images are
never pooled, so a large image weighs no more than a small one.

A pixel is called tumour iff ``heatmap >= 0.5``, on slides and on single images: elsewhere, too, a
score that equals a threshold is positive. The paper rounds "at a threshold of 0.5" and leaves open
where 0.5 itself goes, as in a constant map of a model that knows nothing.
A pixel that was not scored (NaN: glass) is not called tumour and ranks with a score of 0.

References
----------
.. [1] The second PatchNet paper, appendix E, tables 2 and 7.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from tiling.annotation.raster import draw_area
from wsi_pipeline.contracts import Heatmap, Rule
from wsi_pipeline.errors import EvaluationError

THRESHOLD = 0.5  # a pixel from here up is called tumour (PatchNet paper 2, appendix E)


@dataclass(frozen=True)
class ImageLocalisation:
    """Figures of one image."""

    n_pixels: int
    n_tumour: int  # pixels of the mask
    n_unscored: int
    exact_match: float  # share of pixels that agree with the mask
    recall: float | None  # share of the mask's pixels called tumour; None: the mask is empty
    roc_auc: float | None  # of the pixels; None: the mask is empty or full


@dataclass(frozen=True)
class Localisation:
    """Means over images; those in which a figure is undefined are skipped and counted."""

    n: int
    exact_match: float | None
    recall: float | None
    recall_skipped: int
    roc_auc: float | None
    roc_auc_skipped: int


def localise(
    heatmap: NDArray[np.floating[Any]],
    mask: NDArray[np.bool_],
    *,
    threshold: float = THRESHOLD,
) -> ImageLocalisation:
    """Compare one heatmap with its mask.

    Parameters
    ----------
    heatmap : (H, W) in [0, 1]
        NaN = not scored.
    mask : (H, W) bool
        True on tumour.
    threshold : float

    Raises
    ------
    EvaluationError
        If the two do not have the same shape, or hold no pixel.

    Examples
    --------
    >>> mask = np.array([[True, False, False, False]])
    >>> found = localise(np.ones((1, 4)), mask)
    >>> found.exact_match, found.recall, found.roc_auc
    (0.25, 1.0, 0.5)
    """
    if heatmap.shape != mask.shape or not mask.size:
        raise EvaluationError(
            f"heatmap shape {heatmap.shape} does not match mask shape {mask.shape}"
        )
    called = Rule(threshold).decide(heatmap)
    n_tumour = int(np.count_nonzero(mask))
    n_found = int(np.count_nonzero(called & mask))
    return ImageLocalisation(
        n_pixels=mask.size,
        n_tumour=n_tumour,
        n_unscored=int(np.count_nonzero(np.isnan(heatmap))),
        exact_match=int(np.count_nonzero(called == mask)) / mask.size,
        recall=n_found / n_tumour if n_tumour else None,
        roc_auc=_pixel_auc(np.nan_to_num(heatmap, nan=0.0), mask, n_tumour),
    )


def _pixel_auc(
    values: NDArray[np.floating[Any]], mask: NDArray[np.bool_], n_tumour: int
) -> float | None:
    n_other = mask.size - n_tumour
    if not n_tumour or not n_other:
        return None
    ranks = rankdata(values.ravel())  # ties share their mean rank: one half of each such pair
    won = ranks[mask.ravel()].sum() - n_tumour * (n_tumour + 1) / 2
    return float(won / (n_tumour * n_other))


def average_localisation(images: Iterable[ImageLocalisation]) -> Localisation:
    """Average over images: exact match over all, recall and ROC AUC where they are defined."""
    known = list(images)
    recalls = [image.recall for image in known if image.recall is not None]
    aucs = [image.roc_auc for image in known if image.roc_auc is not None]
    return Localisation(
        n=len(known),
        exact_match=_mean([image.exact_match for image in known]),
        recall=_mean(recalls),
        recall_skipped=len(known) - len(recalls),
        roc_auc=_mean(aucs),
        roc_auc_skipped=len(known) - len(aucs),
    )


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def draw_mask(tumour: Any, heatmap: Heatmap) -> NDArray[np.bool_]:
    """Draw an annotation on a heatmap's grid; see `tiling.annotation.raster.draw_area`.

    Parameters
    ----------
    tumour : shapely MultiPolygon, level-0 px
        Exclusions cut out; may be empty.

    Returns
    -------
    mask : (H, W) bool
    """
    return draw_area(tumour, shape=heatmap.values.shape, pixel_l0=heatmap.pixel_l0)
