"""PatchNet around every pixel, exactly and fast (docs/dense_patchnet.md)."""

from wsi_pipeline.models.dense.engine import DenseEngine

__all__ = ["DenseEngine"]
