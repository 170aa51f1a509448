"""From a thumbnail to a mask of the tissue."""
