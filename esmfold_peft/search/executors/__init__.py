"""What runs the trials of a search: this machine, a Ray cluster, or Slurm."""
