"""Training losses: pure functions of named tensors, one value per chain."""
