"""Public names, for type checkers; `__init__.py` imports them on first use."""

from wsi_pipeline.inference.engine import PredictSummary as PredictSummary
from wsi_pipeline.inference.engine import predict_store as predict_store
from wsi_pipeline.inference.forward import automatic_batch_size as automatic_batch_size

__all__: list[str]
MODULE_BY_NAME: dict[str, str]
