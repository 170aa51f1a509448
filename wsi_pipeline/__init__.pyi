"""Public names, for type checkers; `__init__.py` imports them on first use."""

from tiling import PatchStore as PatchStore
from tiling import TileConfig as TileConfig
from tiling import TissueConfig as TissueConfig
from tiling import open_slide as open_slide
from tiling import tile_slide as tile_slide
from wsi_pipeline import explain as explain
from wsi_pipeline.config.reading import train_config as train_config
from wsi_pipeline.evaluation.froc_slides import froc as froc
from wsi_pipeline.heatmaps.nms import detect as detect
from wsi_pipeline.heatmaps.slide_heatmap import build_heatmap as build_heatmap
from wsi_pipeline.inference.slide_scores import predict as predict
from wsi_pipeline.models import build_model as build_model
from wsi_pipeline.models.checkpoint import load_checkpoint as load_checkpoint
from wsi_pipeline.training import train_model as train_model

__version__: str
__all__: list[str]
MODULE_BY_NAME: dict[str, str]
