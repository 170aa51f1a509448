"""CLAM's coordinates of one slide, as in its ``patches/`` folder: ``coords``, no scores."""

from pathlib import Path

from tiling.wording import pluralize
from wsi_pipeline.exports.base import ExportJob
from wsi_pipeline.exports.hdf5 import write_hdf5
from wsi_pipeline.inference.scores import clam_attributes


def write(job: ExportJob, folder: Path) -> tuple[list[Path], str]:
    """Write ``<slide_id>.h5``."""
    slide = job.slide
    path = folder / f"{slide.info.slide_id}.h5"
    attributes = clam_attributes(slide.info, slide.geometry)
    write_hdf5(path, {"coords": slide.scores.coords}, coords_attributes=attributes)
    return [path], f"{pluralize(len(slide.scores.coords), 'patch')}{slide.describe_square()}"
