"""Several chains folded as one, joined by linkers that the result does not have.

The language model knows single chains only. As in ESMFold, chains are joined by a linker of 25
glycines, and their residue numbers by a gap of 512, far more than relative positions tell apart.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from esmfold_peft.datasets.streams import random_stream
from esmfold_peft.errors import UserError
from esmfold_peft.model.inference import Query, sequence_features
from esmfold_peft.protein.fasta import ChainReader

LINKER = "G" * 25
GAP = 512
"""Added to the residue numbers of a chain, besides the linker before it."""

_LONGEST = 1_000_000

MASKED_SHARE = 0.15
"""Of the residues, for each further seed: the share in the training of ESM-2 (Lin et al. 2023)."""


def read_sequence(text: object) -> tuple[str, ...]:
    """The chains of a typed sequence: one-letter codes, ":" between chains, white space ignored.

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
        too_many = f"has more than {_LONGEST:,} residues"
        raise UserError(f"sequence: {too_many if reader.count else 'has no residues'}")
    return chains


def query(name: str, chains: Sequence[str], seed: int = 0) -> Query:
    """One or several chains as the model folds them.

    Args:
        name: of the sequence.
        chains: one-letter codes of each, at least one residue.
        seed: 0 folds the sequence. Any other number masks a random 15 % of its residues in the
            language model; the number and the sequence alone decide which.
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
        masked=_masked(sequence, kept, seed) if seed else None,
    )


def _masked(sequence: str, kept: Bool[np.ndarray, "n"], seed: int) -> Bool[np.ndarray, "n"]:
    digest = hashlib.sha256(sequence.encode()).digest()
    stream = random_stream(seed, int.from_bytes(digest[:4]), int.from_bytes(digest[4:8]))
    residues = np.flatnonzero(kept)
    count = max(1, round(MASKED_SHARE * len(residues)))
    masked = np.zeros(len(sequence), dtype=bool)
    masked[stream.permutation(residues)[:count]] = True
    return masked
