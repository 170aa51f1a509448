"""The quality-control picture of a plan."""

from PIL.Image import Image

from tiling.contracts import Slide
from tiling.overview import Overview, read_overview
from tiling.qc import SIDE_PX, draw_qc
from tiling.resample import nearest_finer_level
from tiling.tile_plan import TilePlan

CHEAP_PX = 32 * 2**20  # of a level: read within a second or so


def draw_plan(slide: Slide, plan: TilePlan) -> Image:
    """Draw the quality-control picture of a plan."""
    info, geometry = plan.info, plan.geometry
    overview = _finer_overview(slide, plan)
    return draw_qc(
        overview.rgb,
        pixel_l0=overview.pixel_l0,
        tissue=plan.mask.tissue,
        coords=plan.table.coords,
        tile_l0=(geometry.patch_l0, geometry.patch_l0_y),
        label=plan.table.label,
        unreadable=plan.table.unreadable,
        title=(
            f"{info.slide_id}: {info.size[0]} x {info.size[1]} px, {info.mpp[0]:.4g} microns per px"
        ),
        mpp=info.mpp[0],
        tumour=None if plan.annotation is None else plan.annotation.tumour,
    )


def _finer_overview(slide: Slide, plan: TilePlan) -> Overview:
    """The overview of the mask; of a small slide a finer one, if it is cheap to read."""
    info, coarse = plan.info, plan.mask.overview
    mpp = max(side * mpp for side, mpp in zip(info.size, info.mpp, strict=True)) / SIDE_PX
    scale = (mpp / info.mpp[0], mpp / info.mpp[1])
    level = nearest_finer_level(info.level_downsamples, scale)
    width, height = info.level_sizes[level]
    if max(coarse.rgb.shape) >= SIDE_PX or width * height > CHEAP_PX:
        return coarse
    return read_overview(slide, mpp=info.mpp, target_mpp=mpp)
