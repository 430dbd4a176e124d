"""`python -m esmfold_peft` is the command `esmfold-peft`."""

from esmfold_peft.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
