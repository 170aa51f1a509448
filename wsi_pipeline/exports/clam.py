"""CLAM's HDF5 of one slide: ``coords`` with their attributes, and scores.

CLAM draws heatmaps from ``attention_scores`` (N, 1) and ``coords`` (N, 2); the scores are stored
under that name. Patches without a score are skipped, since CLAM ranks all patches.
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
    summary = f"{pluralize(int(slide.scored.sum()), 'patch')}{slide.describe_unscored()}"
    return [path], summary + slide.describe_square()
