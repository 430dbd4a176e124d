"""From structure files to a store: the steps of `esmfold-peft prepare`."""
