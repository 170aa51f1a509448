"""Slides in, patch stores out. Knows nothing of models; never imports torch or wsi_pipeline."""
