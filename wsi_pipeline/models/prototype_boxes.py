"""Where in an image a prototype is found: its similarities over the pixels, and a box around them.

References
----------
.. [1] Chen et al., "This Looks Like That: Deep Learning for Interpretable Image Recognition",
   NeurIPS 2019, section 2.2 and supplement: the box is the smallest that holds all pixels of at
   least the 95th percentile of the upsampled activation.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

PERCENTILE = 95.0  # [1]

Box = tuple[int, int, int, int]  # x, y, width, height, px


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Stretch maps over an image: (n, h', w') -> (n, h, w), bicubic; it may over- and undershoot.

    Parameters
    ----------
    maps : (n, h', w')
    size : (h, w)
    """
    return F.interpolate(maps[:, None], size=size, mode="bicubic", align_corners=False)[:, 0]


def find_box(values: NDArray[np.floating], percentile: float = PERCENTILE) -> Box:
    """Find the smallest box that holds all pixels of at least a percentile of a map.

    Parameters
    ----------
    values : (h, w)
        Of a constant map the box is the image.
    percentile : float
        In [0, 100].

    Returns
    -------
    box : x, y, width, height, px

    Examples
    --------
    >>> values = np.zeros((10, 10))
    >>> values[2:4, 5:8] = 1
    >>> find_box(values)
    (5, 2, 3, 2)
    """
    marked = values >= np.percentile(values, percentile)
    rows, columns = (np.flatnonzero(marked.any(axis=axis)) for axis in (1, 0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y
