"""The tissue of one slide: by its colours or a user's mask, and its share of each tile."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import Slide, SlideInfo, TileConfig, TileGeometry
from tiling.files import digest_file
from tiling.masks import UserMask, find_mask, read_mask
from tiling.slide import Overview, read_overview
from tiling.tissue import SummedMask, segment_tissue
from tiling.wording import format_percent

# (n_tiles, 2) level-0 px -> (n_tiles,) share of each tile that is tissue
TissueMeter = Callable[[NDArray[np.int64]], NDArray[np.float32]]


@dataclass(frozen=True)
class SlideTissue:
    """Where a slide's tissue is."""

    overview: Overview
    tissue: NDArray[np.bool_]  # (H, W) of the overview; what cannot be decoded counts as tissue
    share: float  # of the slide that is tissue
    user: UserMask | None = None  # measured by, if there is one; `tissue` is then its picture


def find_tissue(slide: Slide, info: SlideInfo, config: TileConfig, threads: int) -> SlideTissue:
    """Find the tissue of an open slide.

    Raises
    ------
    TissueError
        If a mask is asked for and missing, damaged or of another shape; if a setting is wrong.
    """
    overview = read_overview(slide, mpp=info.mpp, target_mpp=config.tissue.mpp, threads=threads)
    if config.tissue.mask is not None:
        return _read_user_mask(config.tissue.mask, info, overview)
    mpp = (overview.pixel_l0[0] * info.mpp[0], overview.pixel_l0[1] * info.mpp[1])
    tissue = segment_tissue(overview.rgb, mpp=mpp, config=config.tissue)
    # Where nothing could be decoded there may be tissue: its patches are tried and counted.
    return SlideTissue(overview, tissue | overview.unreadable, float(tissue.mean()))


def _read_user_mask(folder: Path, info: SlideInfo, overview: Overview) -> SlideTissue:
    height, width = overview.rgb.shape[:2]
    user = read_mask(
        find_mask(folder, info.slide_id), slide_size=info.size, wanted_px=(2 * width, 2 * height)
    )
    return SlideTissue(overview, user.on_grid((height, width)), user.slide_share, user)


def tissue_meter(mask: SlideTissue, geometry: TileGeometry) -> TissueMeter:
    """Make ready to measure the share of tiles that is tissue, however many groups of them."""
    user = mask.user
    if user is None:
        summed = SummedMask(mask.tissue, mask.overview.pixel_l0)
    elif user.share is None:  # polygons
        return partial(user.tile_fraction, geometry=geometry)
    else:
        summed = SummedMask(user.share, user.pixel_l0)
    return partial(summed.tile_fraction, tile_l0=(geometry.patch_l0, geometry.patch_l0_y))


def say_no_tissue(mask: SlideTissue, config: TileConfig, *, n_tiles: int) -> str:
    """Say that no tile holds enough tissue, and the cure."""
    tissue = config.tissue
    if tissue.mask is not None:
        return (
            f"no tissue: {format_percent(mask.share, 1)} of the slide is tissue by its mask in "
            f"{tissue.mask.name}, and none of its {n_tiles} tiles reaches min_fraction="
            f"{tissue.min_fraction:g}; correct the mask, lower tissue.min_fraction, or leave the "
            "slide out"
        )
    return (
        f"no tissue: {format_percent(mask.share, 1)} of the slide was taken for tissue, and none "
        f"of its {n_tiles} tiles reaches min_fraction={tissue.min_fraction:g}; look at the QC "
        f"picture, then lower tissue.min_fraction, min_saturation={tissue.min_saturation:g} or "
        f"min_object_um2={tissue.min_object_um2:g}, or leave the slide out"
    )


def digest_mask(folder: Path | None, slide_id: str) -> str | None:
    """Hash the mask of a slide; None where none is asked for."""
    if folder is None:
        return None
    path = find_mask(folder, slide_id)
    return path.suffix + digest_file(path)
