"""A chain as it is scored, from a file or a store."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from esmfold_peft.datasets.features import Features
from esmfold_peft.protein.residues import (
    ATOM14_MASK,
    ATOM14_TO_ATOM37,
    ATOM37,
    ATOM37_INDEX,
    RESIDUES_X,
)
from esmfold_peft.protein.structure import ProteinStructure

_CA = ATOM37_INDEX["CA"]
_BACKBONE = [ATOM37_INDEX[name] for name in ("N", "CA", "C", "O", "CB", "OXT")]
"""With Cβ, which the backbone determines."""

_HYPOTHETICAL = ("MODEL", "PREDICT", "COMPUT")
"""Words of a method that is no experiment, as in THEORETICAL MODEL."""


@dataclass(frozen=True, eq=False)
class Chain:
    """A chain, of a prediction or of the truth.

    Attributes:
        sequence: one-letter codes, X for a residue outside the standard twenty.
        residue_index: 0-based places in the deposited sequence.
        numbers: author's residue numbers with insertion code, "" where nothing is modelled; those
            of a chain from a store are its places, 1-based.
        positions: atom37 coordinates in Å.
        atom_mask: which atoms are present.
        plddt: 0 to 100, NaN where there is no Cα; None if the chain states none.
        plddt_note: what a reader of the scores should know of its pLDDT; "" if nothing.
        models: number of models in its file; the chain is of the first.
        notes: what the reader of its file skipped or had to choose.
    """

    sequence: str
    residue_index: Int64[np.ndarray, "n"]
    numbers: tuple[str, ...]
    positions: Float32[np.ndarray, "n 37 3"]
    atom_mask: Bool[np.ndarray, "n 37"]
    plddt: Float64[np.ndarray, "n"] | None = None
    plddt_note: str = ""
    models: int = 1
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of residues, resolved or not."""
        return len(self.sequence)

    @property
    def modelled(self) -> Bool[np.ndarray, "n"]:
        """Which residues have coordinates, those outside the standard twenty too."""
        return np.array([number != "" for number in self.numbers], dtype=bool)

    @property
    def trace_only(self) -> bool:
        """Whether there is no atom but Cα."""
        others = np.arange(len(ATOM37)) != _CA
        return bool(self.atom_mask[:, _CA].any()) and not self.atom_mask[:, others].any()

    @property
    def backbone_only(self) -> bool:
        """Whether side chains end at Cβ, though some residues have more atoms."""
        have_more = np.array([letter not in "GAX" for letter in self.sequence], dtype=bool)
        expected = have_more & self.atom_mask[:, _CA]
        side_chains = np.delete(self.atom_mask, _BACKBONE, axis=1)
        return bool(expected.any()) and not side_chains.any()


def from_structure(structure: ProteinStructure, models: int = 1) -> Chain:
    """A chain from a file of so many models; its B-factors are pLDDT where they can be."""
    plddt, note = _plddt(structure)
    return Chain(
        sequence=structure.sequence,
        residue_index=structure.residue_index.astype(np.int64),
        numbers=structure.residue_names,
        positions=structure.positions,
        atom_mask=structure.atom_mask,
        plddt=plddt,
        plddt_note=note,
        models=models,
        notes=structure.notes,
    )


def from_features(features: Features) -> Chain:
    """A chain of a store, which keeps neither the author's numbers nor B-factors."""
    n = len(features)
    positions = np.zeros((n, len(ATOM37), 3), dtype=np.float32)
    mask = np.zeros((n, len(ATOM37)), dtype=bool)
    known = features.atom_mask & ATOM14_MASK[features.aatype]
    rows, columns = known.nonzero()
    places = ATOM14_TO_ATOM37[features.aatype[rows], columns]
    positions[rows, places] = features.positions[rows, columns]
    mask[rows, places] = True
    # X has no atoms in a store, which does not tell whether it is modelled.
    modelled = known.any(-1) | (features.aatype == RESIDUES_X.index("X"))
    numbers = zip(modelled, features.residue_index, strict=True)
    return Chain(
        sequence="".join(RESIDUES_X[k] for k in features.aatype),
        residue_index=features.residue_index,
        numbers=tuple(str(int(index) + 1) if some else "" for some, index in numbers),
        positions=positions,
        atom_mask=mask,
    )


def _plddt(structure: ProteinStructure) -> tuple[Float64[np.ndarray, "n"] | None, str]:
    """pLDDT, 0 to 100, from the B-factors of Cα, and a note on its scale."""
    present = structure.atom_mask[:, _CA]
    values = np.where(present, structure.b_factors[:, _CA].astype(np.float64).round(4), np.nan)
    known = values[present]
    if not len(known):
        return None, ""
    method = (structure.method or "MODEL").upper()
    if not any(word in method for word in _HYPOTHETICAL):
        return None, f"no pLDDT: an experimental structure ({structure.method})"
    if known.min() < 0 or known.max() > 100:
        return None, "no pLDDT: B-factors outside 0 to 100"
    if len(known) > 1 and known.min() == known.max():
        return None, f"no pLDDT: all B-factors are {known[0]:g}"
    if known.max() <= 1:
        return 100 * values, "pLDDT of 0 to 1 in the file, taken times 100"
    return values, ""
