"""Several chains folded as one, with a linker between them that the result does not have.

The language model knows single chains only. As in ESMFold, chains are joined by a linker of 25
glycines, and their residue numbers by a gap of 512, far beyond the distances that the relative
positions tell apart.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from esmfold_peft.datasets.streams import random_stream
from esmfold_peft.errors import UserError
from esmfold_peft.model.inference import Query, sequence_features
from esmfold_peft.protein.fasta_chains import ChainReader

LINKER = "G" * 25
GAP = 512
"""How much the residue numbers of a chain are moved on, besides the linker before it."""

_LONGEST = 1_000_000

HIDDEN_SHARE = 0.15
"""Of the residues, for each further seed: what ESM-2 was trained to guess (Lin et al. 2023)."""


def read_sequence(text: object) -> tuple[str, ...]:
    """The chains of a sequence that was typed, as in a FASTA record.

    Args:
        text: one-letter codes, ":" between chains; white space is passed over.

    Raises:
        UserError: it is no str, has no residues, an empty chain, or a character that is no residue.
    """
    if not isinstance(text, str):
        raise UserError(
            f"sequence: {type(text).__name__} instead of str; give one-letter codes, the chains of"
            ' a complex with ":" between them'
        )
    reader = ChainReader(_LONGEST)
    reader.add(text, 1)
    chains = reader.finish()
    if reader.problem is not None:
        raise UserError(f"sequence: {reader.problem[1]}")
    if not chains:
        raise UserError(f"sequence: {_why_none(reader.count)}")
    return chains


def _why_none(residues: int) -> str:
    return f"has more than {_LONGEST:,} residues" if residues else "has no residues"


def query(name: str, chains: Sequence[str], seed: int = 0) -> Query:
    """What is folded for one or several chains.

    Args:
        name: of the sequence.
        chains: one-letter codes of each, at least one residue.
        seed: 0 folds the sequence; every other number hides 15 % of its residues from the language
            model, which of them follows from the number and the sequence alone.
    """
    sequence = LINKER.join(chains)
    kept = np.ones(len(sequence), dtype=bool)
    residue_index = np.arange(len(sequence))
    end = 0
    for chain in chains[:-1]:
        end += len(chain)
        kept[end : end + len(LINKER)] = False
        end += len(LINKER)
        residue_index[end:] += GAP
    return Query(
        features=sequence_features(name, sequence, residue_index),
        kept=None if kept.all() else kept,
        hidden=_hidden(sequence, kept, seed) if seed else None,
    )


def _hidden(sequence: str, kept: Bool[np.ndarray, "n"], seed: int) -> Bool[np.ndarray, "n"]:
    digest = hashlib.sha256(sequence.encode()).digest()
    stream = random_stream(seed, int.from_bytes(digest[:4]), int.from_bytes(digest[4:8]))
    residues = np.flatnonzero(kept)
    count = max(1, round(HIDDEN_SHARE * len(residues)))
    hidden = np.zeros(len(sequence), dtype=bool)
    hidden[stream.permutation(residues)[:count]] = True
    return hidden
