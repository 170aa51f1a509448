"""Visual explanations, one method per file."""
