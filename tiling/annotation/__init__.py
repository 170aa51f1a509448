"""Annotations: formats, polygons, labels of patches."""
