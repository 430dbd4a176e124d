"""The commands of `esmfold-peft adapters`: one file each."""
