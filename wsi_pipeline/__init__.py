"""Patch stores in, reports out; also the Python API of both packages (docs/python.md).

Public names are imported on first use, so importing this package does not import torch, zarr or
OpenSlide.
"""

from tiling import MODULE_BY_NAME as _MODULE_BY_NAME_OF_TILING
from tiling.lazy import lazy_names

__version__ = "0.3.0"

__all__ = [
    "PatchStore",
    "TileConfig",
    "TissueConfig",
    "build_heatmap",
    "build_model",
    "detect",
    "explain",
    "froc",
    "load_checkpoint",
    "open_slide",
    "predict",
    "tile_slide",
    "train_config",
    "train_model",
]

MODULE_BY_NAME = {
    **_MODULE_BY_NAME_OF_TILING,
    "build_heatmap": "wsi_pipeline.heatmaps.slide_heatmap",
    "build_model": "wsi_pipeline.models",
    "detect": "wsi_pipeline.heatmaps.nms",
    "explain": "wsi_pipeline.explain",
    "froc": "wsi_pipeline.evaluation.froc_slides",
    "load_checkpoint": "wsi_pipeline.models.checkpoint",
    "predict": "wsi_pipeline.inference.slide_scores",
    "train_config": "wsi_pipeline.config.reading",
    "train_model": "wsi_pipeline.training",
}

__getattr__, __dir__ = lazy_names(__name__, MODULE_BY_NAME)
