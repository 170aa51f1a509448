"""One self-contained HTML page that shows a whole run to someone who never saw the project."""
