"""WSInfer's CSV of one slide: ``minx,miny,width,height,prob_<class>``, level-0 px.

Patches without a score are skipped: WSInfer's readers expect a number in every row.
"""

from pathlib import Path

from tiling.wording import pluralize
from wsi_pipeline.evaluation.tables import write_rows
from wsi_pipeline.exports.base import ExportJob


def write(job: ExportJob, folder: Path) -> tuple[list[Path], str]:
    """Write ``<slide_id>.csv``."""
    slide = job.slide
    path = folder / f"{slide.info.slide_id}.csv"
    header = ("minx", "miny", "width", "height", f"prob_{job.settings.class_name}")
    coords = slide.scores.coords[slide.scored].tolist()
    scores = slide.scores.scores[slide.scored].tolist()
    rows = ((x, y, *slide.patch_l0, score) for (x, y), score in zip(coords, scores, strict=True))
    write_rows(path, header, rows)
    return [path], f"{pluralize(len(scores), 'patch')}{slide.describe_unscored()}"
