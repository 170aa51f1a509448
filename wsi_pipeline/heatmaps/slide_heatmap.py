"""The heatmap of a slide from its scores, which include the geometry of the slide."""

from dataclasses import replace
from typing import Any

from wsi_pipeline.config.settings import Overlap
from wsi_pipeline.contracts import Heatmap, Scores
from wsi_pipeline.errors import HeatmapError
from wsi_pipeline.heatmaps.rasters import rasterise_scores


def build_heatmap(
    scores: Scores, *, overlap: Overlap = "mean", pixel_l0: tuple[int, int] | None = None
) -> Heatmap:
    """Build the heatmap of a slide from its scores.

    Parameters
    ----------
    scores : Scores
        As returned by `predict`, or read from a score file.
    overlap : {"mean", "max", "centre"}
        Value of a pixel that several patches cover: their mean, their maximum, or the mean with
        weights that fall linearly from a patch's centre to its edge.
    pixel_l0 : (x, y), level-0 px, optional
        Size of a heatmap pixel; default: a patch, or the largest pixel that patches and strides are
        multiples of.

    Returns
    -------
    heatmap : Heatmap
        ``values`` (ceil(height / pixel), ceil(width / pixel)) float32, row and column order; NaN
        where no patch was scored.

    Raises
    ------
    HeatmapError
        If the scores lack the size of the slide or of the patches, a patch lies outside the slide,
        a score outside [0, 1], or a pixel is larger than a patch.
    """
    slide_size, patch_l0, stride_l0 = (
        _read_pair(scores, name) for name in ("level_dim", "patch_l0", "stride_l0")
    )
    heatmap = rasterise_scores(
        scores.coords,
        scores.scores,
        slide_size=slide_size,
        patch_l0=patch_l0,
        stride_l0=stride_l0,
        overlap=overlap,
        pixel_l0=pixel_l0,
    )
    return replace(heatmap, mpp=_find_mpp(scores))


def _read_pair(scores: Scores, name: str) -> tuple[int, int]:
    try:
        x, y = scores.coords_attributes[name]
        return int(x), int(y)
    except (KeyError, TypeError, ValueError) as error:
        raise HeatmapError(
            f"scores of {scores.attributes.get('slide_id', 'a slide')}: no (x, y) {name!r} in "
            f"coords_attributes, got {scores.coords_attributes.get(name)!r}; use the scores that "
            "predict returns, or wsi_pipeline.heatmaps.rasters.rasterise_scores, which takes sizes"
        ) from error


def _find_mpp(scores: Scores) -> tuple[float, float] | None:
    """µm per level-0 px, from the exact scale of the tiling; None if it is not recorded."""
    try:
        tiling: Any = scores.attributes["settings"]["tiling"]
        x, y = (float(tiling["target_mpp"]) / float(side) for side in tiling["scale"])
        return x, y
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
