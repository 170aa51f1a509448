"""Job scripts of all stages of a run for batch systems: Slurm, PBS, Grid Engine."""
