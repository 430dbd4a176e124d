"""The commands of `esmfold-peft weights`: one file each."""
