"""WSInfer's CSV of one slide: ``minx,miny,width,height,prob_<class>``, level-0 px.

Patches without a score are skipped: WSInfer's readers expect a number in every row.
"""

from pathlib import Path

from tiling.wording import pluralize
from wsi_pipeline.config.settings import ExportConfig
from wsi_pipeline.csv_files import write_csv
from wsi_pipeline.exports.base import ExportImage, ExportJob, Scored


def write(job: ExportJob, folder: Path) -> tuple[list[Path], str]:
    """Write ``<slide_id>.csv``."""
    slide = job.slide
    n_scored = pluralize(int(slide.scored.sum()), "patch")
    return _write(slide, job.settings, folder), n_scored + slide.describe_unscored()


def write_image(image: ExportImage, settings: ExportConfig, folder: Path) -> list[Path]:
    """Write ``<image_id>.csv``: one row, the image."""
    return _write(image, settings, folder)


def _write(slide: Scored, settings: ExportConfig, folder: Path) -> list[Path]:
    path = folder / f"{slide.slide_id}.csv"
    header = ("minx", "miny", "width", "height", f"prob_{settings.class_name}")
    coords = slide.scores.coords[slide.scored].tolist()
    scores = slide.scores.scores[slide.scored].tolist()
    rows = ((x, y, *slide.patch_l0, score) for (x, y), score in zip(coords, scores, strict=True))
    write_csv(path, header, rows)
    return [path]
