"""Detections from a heatmap, by non-maximum suppression."""

import numpy as np

from wsi_pipeline.config.settings import EvaluateConfig
from wsi_pipeline.contracts import Detections, Heatmap, Rule
from wsi_pipeline.errors import HeatmapError

THRESHOLD = 0.5  # only scores above it are detections (CAMELYON16 baseline)
RADIUS_UM = EvaluateConfig.detection_radius_um  # by default, a detection clears this far


def radius_in_px(radius_um: float, heatmap: Heatmap, mpp: tuple[float, float]) -> tuple[int, int]:
    """Turn a radius in µm into heatmap pixels (x, y), at least one along each.

    Parameters
    ----------
    radius_um : µm
    heatmap : Heatmap
    mpp : (x, y), µm per level-0 px

    Examples
    --------
    >>> radius_in_px(75, Heatmap(np.zeros((1, 1), np.float32), (64, 32), (64, 64)), (0.25, 0.25))
    (5, 9)
    """
    x, y = (
        max(1, round(radius_um / (pixel * um)))
        for pixel, um in zip(heatmap.pixel_l0, mpp, strict=True)
    )
    return x, y


def detect(
    heatmap: Heatmap,
    *,
    threshold: float = THRESHOLD,
    radius_um: float | None = None,
    radius_px: int | tuple[int, int] | None = None,
) -> Detections:
    """Take the highest score, clear the square around it, and repeat.

    Ties go to the lowest row, then the lowest column. The square is ``[c - r, c + r)`` along each
    axis, cut at the heatmap's edges: it reaches one pixel further up and left than down and right.

    Parameters
    ----------
    heatmap : Heatmap
        NaN is never detected.
    threshold : float
        Only scores strictly above it count.
    radius_um : µm, optional
        Half the side of the square that a detection clears, rounded to heatmap pixels, at least
        one; default: 75. The heatmap must have its `mpp`.
    radius_px : heatmap px, or (x, y) heatmap px, optional
        The same in pixels, at least 1, in place of `radius_um`.

    Returns
    -------
    detections : Detections
        ``x``, ``y`` (N,) int64 and ``scores`` (N,) float64, in descending score; at the centres of
        heatmap pixels, level-0 px, inside the slide.

    Raises
    ------
    HeatmapError
        If the radius is not positive, given twice, or in µm for a heatmap without `mpp`.

    Examples
    --------
    >>> values = np.array([[0.9, 0.8, 0.2, 0.7]], np.float32)
    >>> found = detect(Heatmap(values, (10, 10), (36, 10)), radius_px=2)
    >>> found.x.tolist(), found.y.tolist(), found.scores.round(2).tolist()
    ([5, 35], [5, 5], [0.9, 0.7])
    """
    reach_x, reach_y = _choose_reach(heatmap, radius_um, radius_px)
    values = heatmap.values
    rows, columns = np.nonzero(Rule(threshold, strict=True).decide(values))  # row by row
    order = np.argsort(-values[rows, columns], kind="stable")  # ties stay row by row
    free = np.ones(values.shape, bool)
    kept: list[tuple[int, int]] = []
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if free[row, column]:
            kept.append((row, column))
            free[
                max(row - reach_y, 0) : row + reach_y,
                max(column - reach_x, 0) : column + reach_x,
            ] = False
    at = np.array(kept, np.int64).reshape(-1, 2)
    (pixel_x, pixel_y), (width, height) = heatmap.pixel_l0, heatmap.slide_size
    return Detections(
        x=np.minimum(at[:, 1] * pixel_x + pixel_x // 2, width - 1),
        y=np.minimum(at[:, 0] * pixel_y + pixel_y // 2, height - 1),
        scores=values[at[:, 0], at[:, 1]].astype(np.float64),
    )


def _choose_reach(
    heatmap: Heatmap, radius_um: float | None, radius_px: int | tuple[int, int] | None
) -> tuple[int, int]:
    if radius_px is None:
        radius_um = RADIUS_UM if radius_um is None else radius_um
        if not 0 < radius_um < float("inf"):
            raise HeatmapError(f"radius_um must be positive, got {radius_um}")
        if heatmap.mpp is None:
            raise HeatmapError(
                "the heatmap has no resolution (mpp), so a radius in µm cannot be used; give "
                "radius_px, in heatmap pixels"
            )
        return radius_in_px(radius_um, heatmap, heatmap.mpp)
    if radius_um is not None:
        raise HeatmapError(
            f"give radius_um or radius_px, not both; got radius_um={radius_um} and "
            f"radius_px={radius_px}"
        )
    x, y = (radius_px, radius_px) if isinstance(radius_px, int) else radius_px
    if min(x, y) < 1:
        raise HeatmapError(f"radius_px must be at least one heatmap pixel, got {radius_px}")
    return x, y
