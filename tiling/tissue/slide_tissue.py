"""The tissue of one slide: by its colours or a user's mask, and its share of each tile."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import Slide, SlideInfo, TileConfig, TileGeometry, TissueConfig
from tiling.files import digest_file
from tiling.overview import Overview, read_overview
from tiling.tissue.mask import PictureKind, find_kind_and_tissue
from tiling.tissue.summed_mask import SummedMask, TissueMeter
from tiling.wording import format_percent

if TYPE_CHECKING:
    from tiling.tissue.given_masks import UserMask

MIN_BORDER_SHARE = 0.02  # of the slide's border; a thread of tissue that reaches it needs no note
# Tried where no tissue is found: settings that let fainter or smaller things be tissue.
REMEDIES = (("min_object_um2",), ("min_saturation",), ("min_saturation", "min_object_um2"))
LOWERED = TissueConfig(min_object_um2=0.0, min_saturation=0.02)


@dataclass(frozen=True)
class SlideTissue:
    """Where a slide's tissue is."""

    overview: Overview
    tissue: NDArray[np.bool_]  # (H, W) of the overview; what cannot be decoded counts as tissue
    share: float  # of the slide that is tissue
    user: "UserMask | None" = None  # measured by, if there is one; `tissue` is then its picture
    notes: tuple[str, ...] = ()
    kind: PictureKind = "stained"  # by which rule tissue was found


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
    return _detect(overview, info, config.tissue, threads)


def _detect(
    overview: Overview, info: SlideInfo, config: TissueConfig, threads: int = 1
) -> SlideTissue:
    mpp = (overview.pixel_l0[0] * info.mpp[0], overview.pixel_l0[1] * info.mpp[1])
    kind, tissue = find_kind_and_tissue(overview.rgb, mpp=mpp, config=config, threads=threads)
    share, notes = float(tissue.mean()), _note_border(tissue, kind)
    # Where nothing could be decoded there may be tissue: its patches are tried and counted.
    tissue |= overview.unreadable
    return SlideTissue(overview, tissue, share, notes=notes, kind=kind)


def _note_border(tissue: NDArray[np.bool_], kind: PictureKind) -> tuple[str, ...]:
    """Note that tissue reaches the border of the slide: it may be glass of an odd colour."""
    border = np.concatenate([tissue[0], tissue[-1], tissue[1:-1, 0], tissue[1:-1, -1]])
    share = float(border.mean()) if border.size else 0.0
    if share < MIN_BORDER_SHARE:
        return ()
    remedy = "raise tissue.min_saturation, or " if kind == "stained" else ""
    return (
        f"{format_percent(share)} of the slide's border counts as tissue; if the QC picture shows "
        f"glass there, {remedy}give a mask (tissue.mask)",
    )


def _read_user_mask(folder: Path, info: SlideInfo, overview: Overview) -> SlideTissue:
    from tiling.tissue.given_masks import find_mask, read_tissue_mask

    height, width = overview.rgb.shape[:2]
    user = read_tissue_mask(
        find_mask(folder, info.slide_id), slide_size=info.size, wanted_px=(2 * width, 2 * height)
    )
    notes = () if user.polygons is None else user.polygons.notes
    return SlideTissue(
        overview,
        user.on_grid((height, width)),
        user.slide_share,
        user,
        tuple(f"tissue mask: {note}" for note in notes),
    )


def tissue_meter(mask: SlideTissue, geometry: TileGeometry) -> TissueMeter:
    """Prepare to measure the share of tiles that is tissue, however many groups of them."""
    if mask.user is not None:
        return mask.user.meter(geometry)
    summed = SummedMask(mask.tissue, mask.overview.pixel_l0)
    return partial(summed.tile_fraction, tile_l0=(geometry.patch_l0, geometry.patch_l0_y))


def explain_no_tissue(
    mask: SlideTissue,
    info: SlideInfo,
    config: TileConfig,
    *,
    n_tiles: int,
    fullest: Callable[[SlideTissue], float],
) -> str:
    """Explain why no tile holds enough tissue, and name only settings that would help.

    Parameters
    ----------
    mask : SlideTissue
    info : SlideInfo
    config : TileConfig
    n_tiles : int
        In the grid.
    fullest : function
        Largest share of a tile that is tissue, by a mask.
    """
    tissue = config.tissue
    most = fullest(mask)
    why = (
        f"no tissue: {format_percent(mask.share, 1)} of the slide counts as tissue"
        + (f" by its mask in {tissue.mask.name}" if tissue.mask is not None else "")
        + f", and none of its {n_tiles} tiles reaches tissue.min_fraction={tissue.min_fraction:g}"
    )
    remedies = [f"set tissue.min_fraction={_round_down(most):g}"] if most > 0 else []
    if tissue.mask is not None:
        remedies.append("correct the mask")
    else:
        if mask.kind == "grey":
            why += " (the slide is grey: what is darker than its glass counts)"
        if not remedies:
            remedies += _helpful_settings(mask, info, config, fullest)
        remedies.append("give a mask of your own (tissue.mask)")
    remedies.append("set tissue.min_fraction=0 to keep every tile")
    return f"{why}; look at the QC picture, then {', or '.join(remedies)}"


def _helpful_settings(
    mask: SlideTissue,
    info: SlideInfo,
    config: TileConfig,
    fullest: Callable[[SlideTissue], float],
) -> list[str]:
    """Find settings by which some tile would be kept."""
    for keys in REMEDIES:
        lower = {key: getattr(LOWERED, key) for key in keys}
        if any(lower[key] >= getattr(config.tissue, key) for key in keys):
            continue
        changed = _detect(mask.overview, info, replace(config.tissue, **lower))
        if changed.share > 0 and fullest(changed) >= config.tissue.min_fraction:
            return ["set " + " and ".join(f"tissue.{key}={lower[key]:g}" for key in keys)]
    return []


def _round_down(share: float) -> float:
    """Round to two digits, so that a tile of this share is kept."""
    unit = 10.0 ** (math.floor(math.log10(share)) - 1)
    return math.floor(share / unit) * unit


def digest_mask(folder: Path | None, slide_id: str) -> str | None:
    """Hash the mask of a slide; None where none is asked for."""
    if folder is None:
        return None
    from tiling.tissue.given_masks import find_mask

    path = find_mask(folder, slide_id)
    return path.suffix + digest_file(path)
