"""Macro- and micrometastases apart, by the size that the annotation gives them.

Annotation formats do not record the type of a metastasis, so it is derived from the
longest diameter of the largest annotated lesion of a slide, as outlined (no growth, no merging).
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from tiling.contracts import Annotation

MetastasisKind = Literal["macro", "micro", "itc"]
KINDS: tuple[MetastasisKind, ...] = ("macro", "micro", "itc")
MACRO_UM = 2000.0  # longer is a macrometastasis (pN stages of the AJCC; CAMELYON16)
MICRO_UM = 200.0  # longer is a micrometastasis; not longer: isolated tumour cells
SOURCE = (
    "longest diameter of the slide's largest annotated lesion: macro above 2 mm, micro above "
    "0.2 mm, itc (isolated tumour cells) up to 0.2 mm"
)


@dataclass(frozen=True)
class SlideMetastasis:
    """The largest metastasis of a slide."""

    diameter_um: float
    kind: MetastasisKind


def largest_metastasis(
    annotation: Annotation | None, *, mpp: tuple[float, float]
) -> SlideMetastasis | None:
    """Measure a slide's largest lesion; None where none is annotated.

    Parameters
    ----------
    mpp : (x, y), µm per level-0 px
    """
    if annotation is None or not annotation.lesions:
        return None
    longest = max(longest_diameter(lesion, mpp=mpp) for lesion in annotation.lesions)
    return SlideMetastasis(longest, classify_metastasis(longest))


def longest_diameter(lesion: Any, *, mpp: tuple[float, float]) -> float:
    """Measure the largest distance between two points of a lesion, µm.

    Parameters
    ----------
    lesion : shapely geometry, level-0 px
    mpp : (x, y), µm per level-0 px

    Examples
    --------
    >>> longest_diameter(shapely.box(0, 0, 300, 400), mpp=(1.0, 1.0))
    500.0
    """
    corners: NDArray[np.float64] = shapely.get_coordinates(shapely.convex_hull(lesion))
    return float(pdist(corners * np.array(mpp)).max())


def classify_metastasis(diameter_um: float) -> MetastasisKind:
    """Classify a metastasis by its diameter.

    Examples
    --------
    >>> [classify_metastasis(d) for d in (2000.1, 2000.0, 200.0)]
    ['macro', 'micro', 'itc']
    """
    if diameter_um > MACRO_UM:
        return "macro"
    return "micro" if diameter_um > MICRO_UM else "itc"
