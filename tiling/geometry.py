"""From what is asked of every slide to the lengths of one slide.

Pure geometry: nothing here opens a file or reads a pixel. Positions are (x, y) in level-0
pixels from the slide's top-left corner. A square [x0, x1) x [y0, y1) holds the pixels x0 .. x1 - 1.
"""

import math
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import (
    AnnotationOrigin,
    EdgeRule,
    LabelRule,
    StoreKind,
    TileConfig,
    TileGeometry,
    TissueConfig,
    Unclassified,
)
from tiling.errors import GridError, PatchSizeError

COARSER_TOLERANCE = 0.02  # scanners round the mpp they state: 2 % coarser than asked is as asked


def resolve_geometry(config: TileConfig, *, slide_mpp: tuple[float, float]) -> TileGeometry:
    """Turn lengths at the target mpp into level-0 pixels of one slide.

    Parameters
    ----------
    config : TileConfig
        What is asked; checked here.
    slide_mpp : (x, y), µm per level-0 px

    Returns
    -------
    geometry : TileGeometry
        `scale` is exact; `patch_l0` and `stride_l0` are rounded to whole level-0 pixels, 1 or more.

    Raises
    ------
    GridError
        If a setting is out of range, or the slide is more than 2 % coarser than the target:
        patches are never enlarged.

    Examples
    --------
    >>> config = TileConfig(target_mpp=0.5, patch_px=256, stride_px=128)
    >>> resolve_geometry(config, slide_mpp=(0.25, 0.25)).patch_l0
    512
    """
    check_tile_config(config)
    _check_resolution(config.target_mpp, slide_mpp)
    scale_x, scale_y = (config.target_mpp / mpp for mpp in slide_mpp)
    stride_px = config.patch_px if config.stride_px is None else config.stride_px
    inner_px = max(1, config.patch_px // 2) if config.inner_px is None else config.inner_px
    return TileGeometry(
        patch_px=config.patch_px,
        inner_px=inner_px,
        target_mpp=config.target_mpp,
        patch_l0=_whole_px(config.patch_px * scale_x),
        patch_l0_y=_whole_px(config.patch_px * scale_y),
        stride_l0=_whole_px(stride_px * scale_x),
        stride_l0_y=_whole_px(stride_px * scale_y),
        scale=(scale_x, scale_y),
    )


def inner_squares(coords: NDArray[np.int64], geometry: TileGeometry) -> NDArray[np.float64]:
    """Find the centred square of each tile that decides its label.

    Parameters
    ----------
    coords : (n_tiles, 2), level-0 px
        Top-left corners (x, y).
    geometry : TileGeometry

    Returns
    -------
    squares : (n_tiles, 4) float64, level-0 px
        (x0, y0, x1, y1), half-open: x1 and y1 are the first pixels outside.

    Examples
    --------
    >>> geometry = resolve_geometry(TileConfig(target_mpp=0.5), slide_mpp=(0.5, 0.5))
    >>> inner_squares(np.array([[1000, 0]]), geometry).tolist()
    [[1128.0, 128.0, 1384.0, 384.0]]
    """
    corners = np.asarray(coords, dtype=np.float64).reshape(-1, 2)
    scale = np.array(geometry.scale)
    margin = (geometry.patch_px - geometry.inner_px) / 2 * scale
    far_margin = (geometry.patch_px + geometry.inner_px) / 2 * scale
    return np.concatenate([corners + margin, corners + far_margin], axis=1)


def check_tile_config(config: TileConfig) -> None:
    """Refuse settings that no slide could satisfy.

    Raises
    ------
    GridError
        Naming the setting, its value and what would be right.
    """
    if not (math.isfinite(config.target_mpp) and config.target_mpp > 0):
        raise GridError(
            f"target_mpp must be a positive number of µm per pixel, got {config.target_mpp}"
        )
    _check_lengths(config)
    _check_choice("label_rule", config.label_rule, get_args(LabelRule))
    _check_choice("annotation_origin", config.annotation_origin, get_args(AnnotationOrigin))
    _check_choice("unclassified", config.unclassified, get_args(Unclassified))
    _check_choice("edge", config.edge, get_args(EdgeRule))
    _check_choice("store", config.store, get_args(StoreKind))
    low, high = config.negative_fraction, config.positive_fraction
    if not 0 <= low < high <= 1:
        raise GridError(
            "negative_fraction must be below positive_fraction, both within [0, 1], "
            f"got negative_fraction={low}, positive_fraction={high}"
        )
    if not 0 <= config.max_unreadable <= 1:
        raise GridError(f"max_unreadable must be within [0, 1], got {config.max_unreadable}")
    check_tissue_config(config.tissue)


def _check_lengths(config: TileConfig) -> None:
    if config.patch_px < 1:
        raise GridError(f"patch_px must be at least one pixel, got {config.patch_px}")
    if config.stride_px is not None and config.stride_px < 1:
        raise GridError(
            f"stride_px must be at least one pixel, got {config.stride_px}; "
            "leave it out for tiles side by side"
        )
    if config.inner_px is not None and not 1 <= config.inner_px <= config.patch_px:
        raise GridError(
            f"inner_px must be from 1 to patch_px={config.patch_px}, got {config.inner_px}"
        )


def check_tissue_config(config: TissueConfig) -> None:
    """Refuse settings of tissue that no slide could satisfy.

    Raises
    ------
    GridError
        Naming the setting, its value and what would be right.
    """
    if not (math.isfinite(config.mpp) and config.mpp > 0):
        raise GridError(
            f"tissue.mpp must be a positive number of µm per pixel, got {config.mpp}; its default "
            f"is {TissueConfig.mpp:g}"
        )
    for key in ("min_saturation", "min_fraction"):
        share = getattr(config, key)
        if not 0 <= share <= 1:
            raise GridError(f"tissue.{key} must be within [0, 1], got {share}")
    for key in ("min_object_um2", "max_hole_um2"):
        area = getattr(config, key)
        if not 0 <= area < math.inf:
            raise GridError(f"tissue.{key} must be an area in µm², 0 or more, got {area}")


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise GridError(f"{key} must be one of {', '.join(choices)}, got {value!r}")


def _check_resolution(target_mpp: float, slide_mpp: tuple[float, float]) -> None:
    if not all(math.isfinite(mpp) and mpp > 0 for mpp in slide_mpp):
        raise GridError(
            f"the slide's µm per pixel must be positive numbers, got {slide_mpp}; "
            "give them in the manifest's mpp column"
        )
    coarsest = max(slide_mpp)
    if coarsest > target_mpp * (1 + COARSER_TOLERANCE):
        raise PatchSizeError(
            f"the slide has {coarsest:g} µm per pixel, coarser than target_mpp={target_mpp:g}, and "
            "patches are never enlarged",
            f"set tile.target_mpp to {coarsest:g} or more, or leave the slide out",
            "leave the slide out, or use a checkpoint trained at "
            f"{coarsest:g} µm per pixel or coarser",
        )


def _whole_px(length: float) -> int:
    return max(1, round(length))
