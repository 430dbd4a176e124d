"""What the folding model returns."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from esmfold_peft.model.confidence import (
    expected_lddt,
    largest_aligned_error,
    predicted_aligned_error,
    predicted_tm,
)
from esmfold_peft.model.heads import Head
from esmfold_peft.model.structure_module import Structure
from esmfold_peft.protein.residues import ATOM37, ATOM37_INDEX


@dataclass(frozen=True, eq=False)
class FoldOutput(Structure):
    """Predicted structures of a batch, and the heads' logits, all in float32.

    Attributes:
        distogram_logits: over distance bins of virtual Cβ; None if not asked for, like the others.
        plddt_logits: over bins of lDDT-Cα, or of the lDDT of each of the 37 atoms (ESMFold).
        resolved_logits: of each of the 37 atoms being resolved.
        pae_logits: over bins of the aligned error of j seen from i.
    """

    distogram_logits: Float[Tensor, "b n n bins_d"] | None = None
    plddt_logits: Float[Tensor, "b n *atoms bins_p"] | None = None
    resolved_logits: Float[Tensor, "b n 37"] | None = None
    pae_logits: Float[Tensor, "b n n bins_e"] | None = None

    @property
    def plddt(self) -> Float[Tensor, "b n"]:
        """Expected lDDT of each residue's Cα, 0 to 1 (AF2 Suppl. Alg. 29)."""
        return self.atom_plddt[:, :, ATOM37_INDEX["CA"]]

    @property
    def atom_plddt(self) -> Float[Tensor, "b n 37"]:
        """Expected lDDT of each atom, 0 to 1; the same for all of a residue unless ESMFold's."""
        logits = asked(self.plddt_logits, "plddt")
        expected = expected_lddt(logits)
        return expected if expected.ndim == 3 else expected[..., None].expand(-1, -1, len(ATOM37))

    @property
    def pae(self) -> Float[Tensor, "b n n"]:
        """Expected error in Å of residue j's Cα seen from residue i's frame (AF2 Suppl. 1.9.7)."""
        return predicted_aligned_error(asked(self.pae_logits, "pae"))

    @property
    def largest_pae(self) -> float:
        """Largest aligned error in Å that the head can predict; its number of bins decides."""
        return largest_aligned_error(asked(self.pae_logits, "pae").shape[-1])

    def ptm(self, mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b"]:
        """Predicted TM-score of each chain, 0 to 1 (AF2 Suppl. 1.9.7)."""
        return predicted_tm(asked(self.pae_logits, "pae"), mask)


def asked(logits: Tensor | None, head: Head) -> Tensor:
    """The logits of a head; a ValueError if it was not among the heads to compute."""
    if logits is None:
        raise ValueError(f"the head {head} was not computed: name it among heads")
    return logits
