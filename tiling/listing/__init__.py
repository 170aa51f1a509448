"""Which files of a folder are slides, and which of them hold the same content."""
