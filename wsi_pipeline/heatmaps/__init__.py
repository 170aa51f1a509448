"""Scores laid over slides: rasters, files, pictures, detections; PatchNet's own maps."""
