"""One module per way to read a slide file; each gives a `tiling.contracts.Slide`."""
