"""Scores and reference in, figures out: patches, slides, FROC by two definitions, uncertainty."""
