"""Training: patch stores in, a checkpoint and its history out."""

from wsi_pipeline.training.loop import TrainSummary, train_model

__all__ = ["TrainSummary", "train_model"]
