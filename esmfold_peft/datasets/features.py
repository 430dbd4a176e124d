"""From a structure to the arrays that the model and the losses use."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Int64

from esmfold_peft.protein.residues import ATOM14_MASK, ATOM14_TO_ATOM37, encode
from esmfold_peft.protein.structure import ProteinStructure


@dataclass(frozen=True, eq=False)
class Features:
    """One chain, or a crop of it, as arrays.

    Attributes:
        id: name of the chain.
        aatype: 0 to 20 (`protein.residues`).
        residue_index: 0-based position in the whole chain.
        positions: atom14 coordinates in Å, 0 where absent.
        atom_mask: which atoms are known.
        resolution: Å; NaN if unknown.
    """

    id: str
    aatype: Int64[np.ndarray, "n"]
    residue_index: Int64[np.ndarray, "n"]
    positions: Float32[np.ndarray, "n 14 3"]
    atom_mask: Bool[np.ndarray, "n 14"]
    resolution: float

    def __len__(self) -> int:
        """Number of residues, resolved or not."""
        return len(self.aatype)

    def crop(self, start: int, length: int) -> "Features":
        """The contiguous stretch of at most `length` residues that begins at `start`."""
        names = ("aatype", "residue_index", "positions", "atom_mask")
        return replace(self, **{n: getattr(self, n)[start : start + length] for n in names})


def features(structure: ProteinStructure) -> Features:
    """Turns a structure into features: a table look-up and one gather, tens of microseconds.

    Frames, torsions and alternatives follow from a batch (`truth`).
    """
    aatype = encode(structure.sequence)
    columns = ATOM14_TO_ATOM37[aatype]
    rows = np.arange(len(aatype))[:, None]
    mask = structure.atom_mask[rows, columns] & ATOM14_MASK[aatype]
    return Features(
        id=structure.id,
        aatype=aatype,
        residue_index=structure.residue_index.astype(np.int64),
        positions=structure.positions[rows, columns] * mask[..., None],
        atom_mask=mask,
        resolution=float("nan") if structure.resolution is None else structure.resolution,
    )
