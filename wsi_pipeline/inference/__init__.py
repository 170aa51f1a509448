"""The prediction engine: one slide's patches -> scores."""

from wsi_pipeline.inference.engine import PredictSummary, predict_store
from wsi_pipeline.inference.forward import automatic_batch_size

__all__ = ["PredictSummary", "automatic_batch_size", "predict_store"]
