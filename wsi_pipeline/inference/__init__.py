"""The prediction engine: one slide's patches -> scores.

Public names are imported when they are first used: reading scores needs no torch.
"""

from tiling.lazy import lazy_names

__all__ = ["PredictSummary", "automatic_batch_size", "predict_store"]

MODULE_BY_NAME = {
    "PredictSummary": "wsi_pipeline.inference.engine",
    "automatic_batch_size": "wsi_pipeline.inference.forward",
    "predict_store": "wsi_pipeline.inference.engine",
}

__getattr__, __dir__ = lazy_names(__name__, MODULE_BY_NAME)
