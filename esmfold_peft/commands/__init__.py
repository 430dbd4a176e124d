"""The commands: each takes its settings and returns its exit code."""
