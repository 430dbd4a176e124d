"""Fine-tuning of protein structure prediction with tensor-adapted language models.

    import esmfold_peft
    model = esmfold_peft.load("runs/lorta_r8")
    prediction = model.fold("MKTAYIAKQRQISFVKSHFSRQ")

Axis words used in shape annotations throughout the package:

    b       chains in a batch                 n       residues, padded
    l       language-model layers             t       tokens (residues, <cls>, <eos>, padding)
    c_s     channels of the single track      c_z     channels of the pair track
    c_m     channels of the MSA track         d       width of the language model
    r       adapter rank                      k       structure-module layers

Å everywhere; masks are bool and mean "present"; residue indices are 0-based inside, 1-based in
files; lDDT is 0 to 1 inside, pLDDT 0 to 100 in files and tables.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esmfold_peft.prediction.predictor import load

__all__ = ["__version__", "load"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`load`, imported when it is asked for: the command line's help needs no torch."""
    if name == "load":
        from esmfold_peft.prediction.predictor import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
