"""What the folding model returns."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from esmfold_peft.geometry.rigid import Rigid


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
        distogram_logits: over 64 distance bins of virtual Cβ.
        plddt_logits: over 50 bins of lDDT-Cα.
    """

    frames: Rigid
    torsions: Float[Tensor, "k b n 7 2"]
    unnormalized_torsions: Float[Tensor, "k b n 7 2"]
    sidechain_frames: Rigid
    positions: Float[Tensor, "b n 14 3"]
    distogram_logits: Float[Tensor, "b n n bins_d"]
    plddt_logits: Float[Tensor, "b n bins_p"]

    @property
    def plddt(self) -> Float[Tensor, "b n"]:
        """Expected lDDT-Cα of each residue, 0 to 1 (AF2 Suppl. Alg. 29)."""
        bins = self.plddt_logits.shape[-1]
        centers = (torch.arange(bins, device=self.plddt_logits.device) + 0.5) / bins
        return (self.plddt_logits.softmax(-1) * centers).sum(-1)
