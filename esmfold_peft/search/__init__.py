"""The α-halving divergence search: its trials, the executors that run them, their outcomes."""
