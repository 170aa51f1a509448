"""Before a run: what the slides are like, and what would be done with them."""
