"""Runs on the disk: their folder, checkpoints and status, and the model that they hold."""
