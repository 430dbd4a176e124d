"""Fine-tuning of protein structure prediction with tensor-adapted language models.

Axis words used in shape annotations throughout the package:

    b       chains in a batch                 n       residues, padded
    l       language-model layers             t       tokens (residues, <cls>, <eos>, padding)
    c_s     channels of the single track      c_z     channels of the pair track
    c_m     channels of the MSA track         d       width of the language model
    r       adapter rank                      k       structure-module layers

Å everywhere; masks are bool and mean "present"; residue indices are 0-based inside, 1-based in
files; lDDT is 0 to 1 inside, pLDDT 0 to 100 in files and tables.
"""

__version__ = "0.1.0"
