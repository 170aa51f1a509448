"""Training: patch stores in, a checkpoint and its history out.

The names are imported on first use: judging the calibration of scores needs no torch.
"""

from typing import TYPE_CHECKING

from tiling.lazy import lazy_names

if TYPE_CHECKING:
    from wsi_pipeline.training.loop import train_model
    from wsi_pipeline.training.summary import TrainSummary

__all__ = ["TrainSummary", "train_model"]

MODULE_BY_NAME = {
    "TrainSummary": "wsi_pipeline.training.summary",
    "train_model": "wsi_pipeline.training.loop",
}

__getattr__, __dir__ = lazy_names(__name__, MODULE_BY_NAME)
