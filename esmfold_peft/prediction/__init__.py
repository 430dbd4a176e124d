"""Sequences to structures: what `predict` and `esmfold_peft.load` are made of."""
