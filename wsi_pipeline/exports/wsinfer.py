"""WSInfer's CSV of one slide: ``minx,miny,width,height,prob_<class>``, level-0 px.

Scores of a model with several classes have one column of each.

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
    names, values = slide.classes(settings.class_name)
    header = ("minx", "miny", "width", "height", *(f"prob_{name}" for name in names))
    coords = slide.scores.coords[slide.scored].tolist()
    columns = values[slide.scored].tolist()
    rows = ((x, y, *slide.patch_l0, *row) for (x, y), row in zip(coords, columns, strict=True))
    write_csv(path, header, rows)
    return [path]
