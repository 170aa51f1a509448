"""The stages of a run, and what they leave behind."""
