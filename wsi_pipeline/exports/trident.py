"""TRIDENT's coordinates of one slide: ``<slide_id>_patches.h5``, all patches, without scores.

TRIDENT reads a square of ``patch_size_level0`` level-0 px and scales it by the ratio of its two
magnifications. Here these are names of resolutions: the ratio is exact, and the magnification of
level 0 is the scanner's or, if it is not recorded, 10 / mpp (40 for 0.25 µm/px). TRIDENT supports
only squares; ``patch_l0`` stores both sides.
"""

from pathlib import Path
from typing import Any

import numpy as np

from tiling.wording import pluralize
from wsi_pipeline.exports.base import ExportJob, ExportSlide
from wsi_pipeline.exports.hdf5 import write_hdf5
from wsi_pipeline.inference.scores import exact_attributes


def write(job: ExportJob, folder: Path) -> tuple[list[Path], str]:
    """Write ``<slide_id>_patches.h5``."""
    slide = job.slide
    path = folder / f"{slide.info.slide_id}_patches.h5"
    coords = slide.scores.coords.astype(np.int64)
    write_hdf5(path, {"coords": coords}, coords_attributes=describe_patches(slide))
    return [path], f"{pluralize(len(coords), 'patch')}{slide.describe_square()}"


def describe_patches(slide: ExportSlide) -> dict[str, Any]:
    """Describe the size of the patches in TRIDENT's terms, and exactly."""
    geometry, info = slide.geometry, slide.info
    level0 = info.objective_power or round(10 / info.mpp[0])  # a name; see above
    ratio = geometry.patch_l0 / geometry.patch_px
    return {
        "patch_size": geometry.patch_px,
        "patch_size_level0": geometry.patch_l0,
        "level0_magnification": level0,
        "target_magnification": level0 / ratio,
        "overlap": geometry.patch_px - round(geometry.stride_l0 / geometry.scale[0]),
        "name": info.slide_id,
        "level0_width": info.size[0],
        "level0_height": info.size[1],
        **exact_attributes(geometry),
    }
