"""From structure files to a store: what `esmfold-peft prepare` does, step by step."""
