"""A run in the browser: slides, heatmaps, annotations and reviews, served on this machine only."""
