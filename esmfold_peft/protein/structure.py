"""One protein chain in memory."""

from dataclasses import dataclass
from datetime import date

import numpy as np
from jaxtyping import Bool, Float32, Int32


@dataclass(frozen=True, eq=False)
class ProteinStructure:
    """One protein chain: its whole sequence, and the atoms that are known.

    Residues that the experiment did not resolve are in `sequence` and have no atom in `atom_mask`.

    Attributes:
        id: name of the chain, such as "1ubq_A".
        sequence: one-letter codes, X for a residue outside the standard twenty.
        residue_index: 0-based position in the deposited sequence (label_seq_id - 1).
        residue_names: author's residue numbers with insertion code ("52A"), "" where the
            residue is not modelled.
        positions: atom37 coordinates in Å, 0 where absent.
        atom_mask: which atoms are present. Never set for X, unless the chain was read with
            `modified`.
        b_factors: B-factor of each atom (pLDDT 0 to 100 in a prediction), 0 where absent.
        chain: author's name of the chain in its file; "A-2" for the second protein of chain A.
        resolution: in Å; None if unknown or without meaning (NMR).
        method: experimental method as the file states it; None if unknown.
        release_date: first revision of the entry; None if unknown.
        entity: label_entity_id of the mmCIF file, the same for chains of one molecule; None where
            the file states none (every PDB file).
        notes: what the reader left out or had to decide, each a sentence without a full stop.
    """

    id: str
    sequence: str
    residue_index: Int32[np.ndarray, "n"]
    residue_names: tuple[str, ...]
    positions: Float32[np.ndarray, "n 37 3"]
    atom_mask: Bool[np.ndarray, "n 37"]
    b_factors: Float32[np.ndarray, "n 37"]
    chain: str = "A"
    resolution: float | None = None
    method: str | None = None
    release_date: date | None = None
    entity: str | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of residues, resolved or not."""
        return len(self.sequence)
