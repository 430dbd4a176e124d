"""The α-halving divergence search: which trials are asked for, who runs them, what came of them."""
