"""Sequences to structures: the parts of `predict` and `esmfold_peft.load`."""
