"""CLAM's HDF5 of one slide: ``coords`` with their attributes, and scores beside them.

CLAM keeps what it draws heatmaps from as ``attention_scores`` (N, 1) beside ``coords`` (N, 2); the
scores stand there. Patches without score are left out, since CLAM ranks all it finds.
"""

from pathlib import Path

from tiling.wording import pluralize
from wsi_pipeline.exports.base import ExportJob
from wsi_pipeline.exports.hdf5 import write_hdf5
from wsi_pipeline.inference.scores import clam_attributes


def write(job: ExportJob, folder: Path) -> tuple[list[Path], str]:
    """Write ``<slide_id>.h5``."""
    slide = job.slide
    path = folder / f"{slide.info.slide_id}.h5"
    write_hdf5(
        path,
        {
            "coords": slide.scores.coords[slide.scored],
            "attention_scores": slide.scores.scores[slide.scored][:, None],
        },
        coords_attributes=clam_attributes(slide.info, slide.geometry),
    )
    said = f"{pluralize(int(slide.scored.sum()), 'patch')}{slide.describe_unscored()}"
    return [path], said + slide.describe_square()
