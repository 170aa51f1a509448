"""Where tissue is: a mask on a small picture of the slide, and its share of each tile.

Pure arrays: nothing here opens a file. Made for bright-field stains (haematoxylin and eosin, DAB,
haematoxylin alone): glass is bright and has one colour, tissue is coloured. Ink, black and grey are
left out by `tiling.tissue.ink`. In a grey picture tissue is what is darker than glass. A dark-field
(fluorescence) slide is recognised by its lack of anything bright; there tissue is what shines.
docs/tissue.md gives the reason for each rule.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

from tiling.contracts import TissueConfig
from tiling.errors import TissueError
from tiling.geometry import check_tissue_config
from tiling.tissue.colour import smooth_hsv
from tiling.tissue.glass import NEAR, find_filler, find_glass, glass_flicker, is_grey
from tiling.tissue.ink import BLACK_VALUE, find_artefacts, widen

# (n_tiles, 2) level-0 px -> (n_tiles,) share of each tile that is tissue
TissueMeter = Callable[[NDArray[np.int64]], NDArray[np.float32]]
PictureKind = Literal["stained", "grey", "dark field"]

# All in HSV, 0 to 1; chosen on public slides (docs/tissue.md) and the demo's drawn ones.
FLICKERS = 8.0  # of glass; what is more saturated is no glass
MAX_THRESHOLD = 0.15  # however much glass flickers
MIN_WIDTH_UM = 50.0  # objects thinner all along are hairs, scratches and the rims of bubbles
SMOOTHING_PX = 1.0  # Gaussian sigma: takes away JPEG and sensor noise
# Dark field: next to nothing as bright as glass, most of it near black, and what is not black
# begins dim. On a bright-field slide with much unscanned black, what is not black is not dim.
BRIGHT_VALUE, MAX_BRIGHT_SHARE, DARK_MEDIAN = 0.7, 0.05, 0.25
UNSCANNED_VALUE, DIM_QUARTILE = 0.05, 0.3
MIN_SHADE, MAX_SHADE = 0.06, 0.15  # of a grey picture: so much darker than glass is tissue
MIN_GLOW, MAX_GLOW = 0.04, 0.1  # bounds of Otsu's threshold on the value in dark field
GLOW_SMOOTHING_UM = 25.0  # Gaussian sigma that bridges the dark between lit nuclei


def segment_tissue(
    thumbnail: NDArray[np.uint8], *, mpp: tuple[float, float], config: TissueConfig
) -> NDArray[np.bool_]:
    """Separate tissue from glass, ink, grey and black.

    HSV saturation against the colour of the slide's glass, above `min_saturation` or what glass
    itself reaches; without artefacts. In a grey picture what is darker than glass, in dark field
    what shines. Then small holes are filled, small and thin objects removed.

    Parameters
    ----------
    thumbnail : (H, W, 3) uint8, RGB
    mpp : (x, y), µm per px of the thumbnail
        May differ from ``config.mpp``; areas are measured with it.
    config : TissueConfig

    Returns
    -------
    mask : (H, W) bool
        True on tissue. All False on bare glass: that is no error here.

    Raises
    ------
    TissueError
        If the thumbnail is no RGB picture.
    GridError
        If a setting is out of range.

    References
    ----------
    .. [1] N. Otsu, "A threshold selection method from gray-level histograms", IEEE Transactions on
       Systems, Man, and Cybernetics 9 (1979) 62: in dark field. The bounds on it are ours.
    """
    check_tissue_config(config)
    _check_thumbnail(thumbnail, mpp)
    if thumbnail.size == 0:
        return np.zeros(thumbnail.shape[:2], bool)
    mask = _find_stained(thumbnail, mpp, config)
    return _clean_mask(mask, mpp=mpp, config=config)


class SummedMask:
    """A mask prepared for measuring many tiles, group by group.

    Parameters
    ----------
    mask : (H, W) bool or float32
        True on tissue, or the share of each pixel; its top-left corner is that of the slide.
    pixel_l0 : (x, y), level-0 px
        Sides of one mask pixel.

    Raises
    ------
    TissueError
        If a length is not positive.

    Examples
    --------
    >>> summed = SummedMask(np.array([[True, False]]), (4.0, 4.0))
    >>> summed.tile_fraction(np.array([[0, 0], [2, 0], [4, 0]]), (4, 4)).tolist()
    [1.0, 0.5, 0.0]
    """

    def __init__(
        self, mask: NDArray[np.bool_] | NDArray[np.float32], pixel_l0: tuple[float, float]
    ) -> None:
        if not min(pixel_l0) > 0:
            raise TissueError(f"a mask's pixels must have positive sides, got {pixel_l0}")
        self._pixel_l0 = pixel_l0
        self._total = _summed_area(mask)

    def tile_fraction(
        self, coords: NDArray[np.int64], tile_l0: tuple[int, int]
    ) -> NDArray[np.float32]:
        """Measure the share of each tile that is tissue, to the fraction of a mask pixel.

        Parameters
        ----------
        coords : (n_tiles, 2), level-0 px
            Top-left corners (x, y).
        tile_l0 : (x, y), level-0 px
            Sides of a tile.

        Returns
        -------
        fraction : (n_tiles,) float32 in [0, 1]
            What lies outside the mask counts as no tissue.
        """
        if min(tile_l0) <= 0:
            raise TissueError(f"tiles must have positive sides, got {tile_l0}")
        coords = np.asarray(coords, dtype=np.int64).reshape(-1, 2)
        first = coords / np.array(self._pixel_l0)  # mask px
        last = (coords + np.array(tile_l0)) / np.array(self._pixel_l0)
        area = (
            _area_before(self._total, last[:, 0], last[:, 1])
            - _area_before(self._total, first[:, 0], last[:, 1])
            - _area_before(self._total, last[:, 0], first[:, 1])
            + _area_before(self._total, first[:, 0], first[:, 1])
        )
        tile_area = math.prod(tile_l0) / math.prod(self._pixel_l0)
        return np.clip(area / tile_area, 0.0, 1.0).astype(np.float32)


def _find_stained(
    thumbnail: NDArray[np.uint8], mpp: tuple[float, float], config: TissueConfig
) -> NDArray[np.bool_]:
    glass = find_glass(thumbnail)
    hue, saturation, value = smooth_hsv(thumbnail, sigma=SMOOTHING_PX, white=glass)
    kind = _kind_of(thumbnail, value)
    if kind == "dark field":
        return _find_glow(value, mpp)
    if kind == "grey":
        return _find_shade(value)
    flicker = glass_flicker(thumbnail, saturation, glass)
    threshold = max(config.min_saturation, min(FLICKERS * flicker, MAX_THRESHOLD))
    mask: NDArray[np.bool_] = saturation > threshold
    mask &= ~find_artefacts(hue, saturation, value, mpp=mpp)
    mask &= ~find_filler(thumbnail)
    return mask


def _find_shade(value: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Find what is darker than glass in a grey picture, and not black."""
    near_glass = value[value > 1 - NEAR]
    flicker = 1 - float(np.median(near_glass)) if near_glass.size else 0.0
    shade: NDArray[np.bool_] = value < 1 - max(MIN_SHADE, min(FLICKERS * flicker, MAX_SHADE))
    return shade & (value >= BLACK_VALUE)


def picture_kind(thumbnail: NDArray[np.uint8]) -> PictureKind:
    """Decide by which rule `segment_tissue` finds tissue in a picture.

    Parameters
    ----------
    thumbnail : (H, W, 3) uint8, RGB
    """
    glass = find_glass(thumbnail)
    return _kind_of(thumbnail, smooth_hsv(thumbnail, sigma=SMOOTHING_PX, white=glass)[2])


def _kind_of(thumbnail: NDArray[np.uint8], value: NDArray[np.float32]) -> PictureKind:
    if _is_dark_field(value):
        return "dark field"
    return "grey" if is_grey(thumbnail) else "stained"


def _check_thumbnail(thumbnail: NDArray[np.uint8], mpp: tuple[float, float]) -> None:
    if thumbnail.ndim != 3 or thumbnail.shape[2] != 3 or thumbnail.dtype != np.uint8:
        raise TissueError(
            f"a thumbnail is (H, W, 3) uint8 RGB, got {thumbnail.shape} {thumbnail.dtype}"
        )
    if not all(math.isfinite(side) and side > 0 for side in mpp):
        raise TissueError(f"mpp of the thumbnail must be positive µm per pixel, got {mpp}")


def _is_dark_field(value: NDArray[np.float32]) -> bool:
    if float(np.mean(value > BRIGHT_VALUE)) >= MAX_BRIGHT_SHARE:
        return False
    if float(np.median(value)) >= DARK_MEDIAN:
        return False
    lit = value[value > UNSCANNED_VALUE]
    return not lit.size or float(np.quantile(lit, 0.25)) < DIM_QUARTILE


def _find_glow(value: NDArray[np.float32], mpp: tuple[float, float]) -> NDArray[np.bool_]:
    sigma = (GLOW_SMOOTHING_UM / mpp[1], GLOW_SMOOTHING_UM / mpp[0])  # rows go along y
    glow = ndimage.gaussian_filter(value, sigma, mode="nearest")
    mask: NDArray[np.bool_] = glow > min(max(_otsu(glow), MIN_GLOW), MAX_GLOW)
    return mask


def _otsu(values: NDArray[np.float32]) -> float:
    """Otsu's threshold; 0 where all values are one."""
    if values.size == 0 or values.min() == values.max():
        return 0.0
    return float(threshold_otsu(values))  # type: ignore[no-untyped-call]


def _clean_mask(
    mask: NDArray[np.bool_], *, mpp: tuple[float, float], config: TissueConfig
) -> NDArray[np.bool_]:
    pixel_um2 = mpp[0] * mpp[1]
    # A picture smaller than the smallest object would lose all its tissue: there a tenth counts.
    largest_um2 = mask.size * pixel_um2 / 10
    holes, n_px = _label_objects(~mask)
    is_filled = n_px * pixel_um2 <= min(config.max_hole_um2, largest_um2)
    is_filled[_labels_at_border(holes)] = False
    is_filled[0] = True  # no hole: tissue already
    filled = is_filled[holes]
    del holes
    objects, n_px = _label_objects(filled)
    is_kept = n_px * pixel_um2 >= min(config.min_object_um2, largest_um2)
    if mask.shape[0] * mpp[1] > 10 * MIN_WIDTH_UM and mask.shape[1] * mpp[0] > 10 * MIN_WIDTH_UM:
        is_kept &= _are_wide(objects, filled, mpp, n_objects=len(n_px))
    is_kept[0] = False
    kept: NDArray[np.bool_] = is_kept[objects]
    return kept


def _are_wide(
    objects: NDArray[np.int32],
    mask: NDArray[np.bool_],
    mpp: tuple[float, float],
    *,
    n_objects: int,
) -> NDArray[np.bool_]:
    """Find the numbered objects that contain a square of side `MIN_WIDTH_UM`."""
    reach = [max(0, math.floor(MIN_WIDTH_UM / side) - 1) // 2 for side in (mpp[1], mpp[0])]
    inner = ~widen(~mask, (reach[0], reach[1]))
    wide = np.zeros(n_objects, np.bool_)
    wide[objects[inner]] = True
    return wide


def _label_objects(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Number the 4-connected objects of `mask` from 1, and count the pixels of each number."""
    labels, n_objects = ndimage.label(mask)
    # Row by row: bincount turns what it is given into 64-bit numbers.
    n_px = np.zeros(n_objects + 1, np.int64)
    step = max(1, 2**20 // max(1, mask.shape[1]))
    for top in range(0, len(labels), step):
        counts = np.bincount(labels[top : top + step].ravel())
        n_px[: len(counts)] += counts
    return labels, n_px


def _labels_at_border(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Find the numbers of the objects that reach the edge of the picture."""
    edges = [labels[0], labels[-1], labels[:, 0], labels[:, -1]]
    return np.unique(np.concatenate(edges))


def _summed_area(mask: NDArray[np.bool_] | NDArray[np.float32]) -> NDArray[np.float64]:
    """Sum the mask up to each pixel corner: (H + 1, W + 1)."""
    total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    inner = total[1:, 1:]
    np.cumsum(mask, axis=1, dtype=np.float64, out=inner)
    np.cumsum(inner, axis=0, out=inner)
    return total


def _area_before(
    total: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Area of the mask above and left of each position, in mask px².

    Within a pixel the summed area grows linearly along each axis, so that bilinear interpolation
    between its corners is exact.
    """
    height, width = (n - 1 for n in total.shape)
    x, y = np.clip(x, 0, width), np.clip(y, 0, height)
    column = np.minimum(x.astype(np.int64), max(width - 1, 0))
    row = np.minimum(y.astype(np.int64), max(height - 1, 0))
    next_column, next_row = np.minimum(column + 1, width), np.minimum(row + 1, height)
    right, down = x - column, y - row
    upper = total[row, column] * (1 - right) + total[row, next_column] * right
    lower = total[next_row, column] * (1 - right) + total[next_row, next_column] * right
    area: NDArray[np.float64] = upper * (1 - down) + lower * down
    return area
