"""How any stage is run: state, marks, runner, cluster, progress."""
