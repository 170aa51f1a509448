"""Training: patch stores in, a checkpoint and its history out."""

from wsi_pipeline.training.loop import train_model
from wsi_pipeline.training.summary import TrainSummary

__all__ = ["TrainSummary", "train_model"]
