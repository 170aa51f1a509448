"""One module per format of annotation file; each parses into a `drawing.Drawing`."""
