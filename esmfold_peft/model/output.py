"""What the folding model returns."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from esmfold_peft.geometry.rigid import Rigid
from esmfold_peft.model.confidence import (
    expected_lddt,
    largest_aligned_error,
    predicted_aligned_error,
    predicted_tm,
)
from esmfold_peft.model.heads import Head
from esmfold_peft.protein.residues import ATOM37, ATOM37_INDEX


@dataclass(frozen=True, eq=False)
class FoldOutput:
    """Predicted structures of a batch. Every tensor is float32, coordinates in Å.

    Attributes:
        frames: backbone frames after each structure-module layer, shape (k, b, n).
        torsions: normalised (sin, cos) of ω, φ, ψ, χ1 to χ4 after each layer.
        unnormalized_torsions: the same before normalisation, for the angle-norm loss.
        sidechain_frames: the eight rigid groups of each residue after the last layer, shape (b, n,
            8).
        positions: atom14 coordinates after the last layer; 0 where the residue has no such atom.
        distogram_logits: over distance bins of virtual Cβ; None if not asked for, like the others.
        plddt_logits: over bins of lDDT-Cα, or of the lDDT of each of the 37 atoms (ESMFold).
        resolved_logits: of each of the 37 atoms being resolved.
        pae_logits: over bins of the aligned error of j seen from i.
    """

    frames: Rigid
    torsions: Float[Tensor, "k b n 7 2"]
    unnormalized_torsions: Float[Tensor, "k b n 7 2"]
    sidechain_frames: Rigid
    positions: Float[Tensor, "b n 14 3"]
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
        """Expected lDDT of each atom, 0 to 1; all of a residue are equal unless ESMFold's."""
        logits = asked(self.plddt_logits, "plddt")
        expected = expected_lddt(logits)
        return expected if expected.ndim == 3 else expected[..., None].expand(-1, -1, len(ATOM37))

    @property
    def pae(self) -> Float[Tensor, "b n n"]:
        """Expected error in Å of residue j's Cα seen from residue i's frame (AF2 Suppl. 1.9.7)."""
        return predicted_aligned_error(asked(self.pae_logits, "pae"))

    @property
    def largest_pae(self) -> float:
        """Å beyond which this head predicts no aligned error; its number of bins decides."""
        return largest_aligned_error(asked(self.pae_logits, "pae").shape[-1])

    def ptm(self, mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b"]:
        """Predicted TM-score of each chain, 0 to 1 (AF2 Suppl. 1.9.7).

        Args:
            mask: which residues exist.
        """
        return predicted_tm(asked(self.pae_logits, "pae"), mask)


def asked(logits: Tensor | None, head: Head) -> Tensor:
    """The logits of a head, which the caller must have asked for.

    Raises:
        ValueError: it has not.
    """
    if logits is None:
        raise ValueError(f"the head {head} was not computed: name it among heads")
    return logits
