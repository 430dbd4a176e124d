"""What runs the trials of a search: this machine, or a Ray cluster."""
