"""The prediction engine: one slide's patches -> scores."""

from wsi_pipeline.inference.engine import PredictSummary, check_patches, predict_store
from wsi_pipeline.inference.forward import automatic_batch_size

__all__ = ["PredictSummary", "automatic_batch_size", "check_patches", "predict_store"]
