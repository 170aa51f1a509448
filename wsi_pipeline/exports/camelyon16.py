"""Detections in CAMELYON16's format: ``prob,x,y``, level-0 px, one CSV per slide.

They are found in the heatmap by non-maximum suppression, as in the evaluation. A slide without
detections gets a CSV without rows.
"""

from pathlib import Path

from tiling.wording import pluralize
from wsi_pipeline.config.settings import EvaluateConfig
from wsi_pipeline.evaluation.detections import write_detections
from wsi_pipeline.exports.base import ExportJob
from wsi_pipeline.heatmaps.nms import detect, radius_in_px


def write(job: ExportJob, folder: Path) -> tuple[list[Path], str]:
    """Write ``<slide_id>.csv``."""
    chosen, default = job.settings, EvaluateConfig()
    radius_um = chosen.detection_radius_um
    threshold = chosen.detection_threshold
    found = detect(
        job.heatmap,
        threshold=default.detection_threshold if threshold is None else threshold,
        radius_px=radius_in_px(
            default.detection_radius_um if radius_um is None else radius_um,
            job.heatmap,
            job.slide.info.mpp,
        ),
    )
    path = folder / f"{job.slide.info.slide_id}.csv"
    write_detections(path, found)
    return [path], pluralize(len(found.scores), "detection")
