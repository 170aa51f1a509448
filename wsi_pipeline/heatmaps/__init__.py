"""Heatmaps of slides: rasters, files, pictures, detections, and PatchNet's own maps."""
