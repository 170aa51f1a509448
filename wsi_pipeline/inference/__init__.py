"""The prediction engine: one slide's patches -> scores.

The names are imported on first use: reading scores needs no torch.
"""

from typing import TYPE_CHECKING

from tiling.lazy import lazy_names

if TYPE_CHECKING:
    from wsi_pipeline.inference.engine import PredictSummary, predict_store
    from wsi_pipeline.inference.forward import automatic_batch_size

__all__ = ["PredictSummary", "automatic_batch_size", "predict_store"]

MODULE_BY_NAME = {
    "PredictSummary": "wsi_pipeline.inference.engine",
    "predict_store": "wsi_pipeline.inference.engine",
    "automatic_batch_size": "wsi_pipeline.inference.forward",
}

__getattr__, __dir__ = lazy_names(__name__, MODULE_BY_NAME)
