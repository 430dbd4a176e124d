"""Several chains as padded tensors."""

from dataclasses import dataclass, replace

from jaxtyping import Bool, Float, Int
from torch import Tensor

from esmfold_peft.datasets.padded import Padded


@dataclass(frozen=True, eq=False)
class Batch(Padded):
    """Chains (or crops of them) padded to one length, with what is known of their structures.

    Attributes:
        ids: name of each chain.
        lengths: residues of each chain, for whoever must not wait for the device to count them.
        aatype: 0 to 20 (`protein.residues`), 20 (X) in the padding.
        residue_index: 0-based position in the whole chain, 0 in the padding.
        mask: which residues exist, resolved or not.
        positions: true atom14 coordinates in Å, 0 where absent.
        atom_mask: which atoms are known.
        resolution: Å; NaN if unknown.
        clamped: whether the backbone FAPE of the chain is clamped in this step.
    """

    ids: tuple[str, ...]
    lengths: tuple[int, ...]
    aatype: Int[Tensor, "b n"]
    residue_index: Int[Tensor, "b n"]
    mask: Bool[Tensor, "b n"]
    positions: Float[Tensor, "b n 14 3"]
    atom_mask: Bool[Tensor, "b n 14"]
    resolution: Float[Tensor, "b"]
    clamped: Bool[Tensor, "b"]

    def rows(self, part: slice, length: int) -> "Batch":
        """Some of the chains, their tensors as views (see `Padded.rows`)."""
        return replace(super().rows(part, length), ids=self.ids[part], lengths=self.lengths[part])
