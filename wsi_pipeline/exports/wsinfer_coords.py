"""WSInfer's coordinates of one slide, as in its ``patches/`` folder: ``coords``, no scores.

WSInfer reads squares of ``patch_size`` level-0 px at ``patch_spacing_um_px``; ``patch_l0`` stores
both sides.
"""

from pathlib import Path

from tiling.wording import pluralize
from wsi_pipeline.exports.base import ExportJob
from wsi_pipeline.exports.hdf5 import write_hdf5
from wsi_pipeline.inference.scores import exact_attributes


def write(job: ExportJob, folder: Path) -> tuple[list[Path], str]:
    """Write ``<slide_id>.h5``."""
    slide = job.slide
    path = folder / f"{slide.info.slide_id}.h5"
    attributes = {
        "patch_size": slide.geometry.patch_l0,
        "patch_level": 0,
        "patch_spacing_um_px": slide.geometry.target_mpp,
        **exact_attributes(slide.geometry),
    }
    write_hdf5(path, {"coords": slide.scores.coords}, coords_attributes=attributes)
    return [path], f"{pluralize(len(slide.scores.coords), 'patch')}{slide.describe_square()}"
