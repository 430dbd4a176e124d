"""The training loss: a weighted sum of terms for each chain."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils._pytree import register_dataclass

from esmfold_peft.config import LossWeights
from esmfold_peft.datasets.truth import GroundTruth
from esmfold_peft.geometry.atoms import atom14_to_atom37_mask
from esmfold_peft.geometry.tables import tables
from esmfold_peft.losses.fape import backbone_fape, sidechain_fape
from esmfold_peft.losses.head_losses import (
    atom_plddt_loss,
    distogram_loss,
    pae_loss,
    plddt_loss,
    resolved_loss,
)
from esmfold_peft.losses.naming import rename_ambiguous
from esmfold_peft.losses.torsion import angle_norm_loss, chi_loss
from esmfold_peft.losses.violations import violation_loss
from esmfold_peft.model.heads import HEADS, Head
from esmfold_peft.model.output import FoldOutput, asked
from esmfold_peft.protein.residues import UNKNOWN

_CA = 1


@dataclass(frozen=True, eq=False)
class LossTerms:
    """The loss of each chain of a batch and its terms.

    Attributes:
        total: weighted sum of the terms, times the square root of the number of residues.
        terms: each computed term, without weight, by its name in `TERMS`.
    """

    total: Float[Tensor, "b"]
    terms: dict[str, Float[Tensor, "b"]]

    def faults(self, ids: Sequence[str]) -> list[str]:
        """Names every chain with a loss that is not finite, and the terms at fault; [] if none.

        Args:
            ids: names of the chains.
        """
        if bool(self.total.isfinite().all()):
            return []
        values = {name: term.tolist() for name, term in {**self.terms, "total": self.total}.items()}
        found = []
        for row, chain in enumerate(ids):
            broken = {n: v[row] for n, v in values.items() if not math.isfinite(v[row])}
            if len(broken) > 1:
                del broken["total"]
            if broken:
                found.append(f"{chain}: " + ", ".join(f"{n} is {v}" for n, v in broken.items()))
        return found


register_dataclass(LossTerms)  # CUDA graphs look for tensors in it


class Case(NamedTuple):
    """What a term may read.

    Attributes:
        output: the prediction.
        truth: true structures of the same chains.
        clamp: where the backbone error of each chain is cut, in Å.
        well_resolved: chains whose resolution is good enough to train the heads of confidence.
    """

    output: FoldOutput
    truth: GroundTruth
    clamp: Float[Tensor, "b"]
    well_resolved: Bool[Tensor, "b"]


def heads_to_compute(weights: LossWeights) -> list[Head]:
    """The heads whose loss has a weight."""
    return [head for head in HEADS if getattr(weights, head)]


def fold_loss(
    output: FoldOutput,
    truth: GroundTruth,
    weights: LossWeights,
    *,
    clamp: Float[Tensor, "b"],
    resolution_range: tuple[float, float] | None = (0.1, 3.0),
) -> LossTerms:
    """The training loss (AF2 Suppl. 1.9, eq. 7, less the masked language model).

    In float32, also under autocast. A term without any known truth is 0; a NaN in the prediction
    gives NaN.

    Args:
        output: prediction, with the heads whose loss has a weight.
        truth: true structures of the same chains.
        weights: of the terms; a term of weight 0 is neither computed nor reported.
        clamp: where the backbone error of each chain is cut, in Å; infinity does not cut.
        resolution_range: chains resolved to within these bounds (Å, included) train the heads of
            confidence; None: all chains. An unknown resolution (NaN) is within no bounds.
    """
    terms: dict[str, Tensor] = {}
    with torch.autocast(output.positions.device.type, enabled=False):
        case = Case(output, truth, clamp, _within(truth.resolution, resolution_range))
        total = torch.zeros_like(truth.resolution)
        for name, (setting, factor, compute) in TERMS.items():
            if weight := getattr(weights, setting):
                terms[name] = compute(case)
                total = total + factor * weight * terms[name]
        # Longer chains weigh more, though each term is a mean (AF2 Suppl. 1.9).
        return LossTerms(total * truth.mask.sum(-1).sqrt(), terms)


def _within(
    resolution: Float[Tensor, "b"], bounds: tuple[float, float] | None
) -> Bool[Tensor, "b"]:
    if bounds is None:
        return torch.ones_like(resolution, dtype=torch.bool)
    return (resolution >= bounds[0]) & (resolution <= bounds[1])


def _backbone_fape(case: Case) -> Tensor:
    return backbone_fape(case.output.frames, case.truth, clamp=case.clamp)


def _sidechain_fape(case: Case) -> Tensor:
    output = case.output
    renamed = rename_ambiguous(case.truth, output.positions)
    return sidechain_fape(output.sidechain_frames, output.positions, renamed.atoms)


def _chi(case: Case) -> Tensor:
    truth = case.truth
    return chi_loss(
        case.output.torsions,
        true=truth.torsions,
        alternative=truth.alternative_torsions,
        mask=truth.torsion_mask,
    )


def _angle_norm(case: Case) -> Tensor:
    return angle_norm_loss(case.output.unnormalized_torsions, case.truth.mask)


def _violation(case: Case) -> Tensor:
    truth = case.truth
    return violation_loss(case.output.positions, truth.aatype, truth.residue_index, truth.mask)


def _distogram(case: Case) -> Tensor:
    logits = asked(case.output.distogram_logits, "distogram")
    return distogram_loss(logits, cb=case.truth.cb, mask=case.truth.cb_mask)


def _plddt(case: Case) -> Tensor:
    output, truth, _, chains = case
    logits = asked(output.plddt_logits, "plddt")
    if logits.ndim == 4:
        return atom_plddt_loss(
            logits,
            predicted=output.positions,
            true=truth.atoms.positions,
            atom_mask=truth.atoms.atom_mask & chains[:, None, None],
            aatype=truth.aatype,
        )
    predicted_ca, mask = output.positions[:, :, _CA], truth.ca_mask & chains[:, None]
    return plddt_loss(logits, predicted_ca=predicted_ca, true_ca=truth.ca, mask=mask)


def _resolved(case: Case) -> Tensor:
    truth = case.truth
    # Nobody knows which atoms an X has, so nobody knows which are missing.
    known = truth.mask & (truth.aatype != UNKNOWN) & case.well_resolved[:, None]
    return resolved_loss(
        asked(case.output.resolved_logits, "resolved"),
        exists=tables(truth.aatype.device).atom37_mask[truth.aatype] & known[..., None],
        resolved=atom14_to_atom37_mask(truth.aatype, truth.atoms.atom_mask),
    )


def _pae(case: Case) -> Tensor:
    return pae_loss(
        asked(case.output.pae_logits, "pae"),
        predicted_frames=case.output.frames[-1],
        true_frames=case.truth.backbone_frames,
        mask=case.truth.backbone_mask & case.well_resolved[:, None],
    )


TERMS: dict[str, tuple[str, float, Callable[[Case], Tensor]]] = {
    "backbone_fape": ("fape", 0.5, _backbone_fape),
    "sidechain_fape": ("fape", 0.5, _sidechain_fape),
    "chi": ("chi", 0.5, _chi),
    "angle_norm": ("chi", 0.01, _angle_norm),
    "violation": ("violation", 1.0, _violation),
    "distogram": ("distogram", 1.0, _distogram),
    "plddt": ("plddt", 1.0, _plddt),
    "resolved": ("resolved", 1.0, _resolved),
    "pae": ("pae", 1.0, _pae),
}
"""Each term by its name in metrics: its setting in `LossWeights`, a factor of that weight, and its
function. The factors of chi and angle_norm are those of AF2 Suppl. Alg. 27 and of its code."""
