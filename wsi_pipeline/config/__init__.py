"""Settings, each with its source, and the reading of a config."""
