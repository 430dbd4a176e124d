"""The training loss: a weighted sum of terms for each chain."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import register_dataclass

from esmfold_peft.config import LossWeights
from esmfold_peft.datasets.truth import GroundTruth
from esmfold_peft.geometry.atoms import atom14_to_atom37_mask
from esmfold_peft.geometry.tables import tables
from esmfold_peft.losses.distogram import distogram_loss
from esmfold_peft.losses.fape import backbone_fape, sidechain_fape
from esmfold_peft.losses.naming import rename_ambiguous
from esmfold_peft.losses.pae import pae_loss
from esmfold_peft.losses.plddt import atom_plddt_loss, plddt_loss
from esmfold_peft.losses.resolved import resolved_loss
from esmfold_peft.losses.torsion import angle_norm_loss, chi_loss
from esmfold_peft.losses.violations import violation_loss
from esmfold_peft.model.heads import HEADS, Head
from esmfold_peft.model.output import FoldOutput, asked
from esmfold_peft.protein.residues import UNKNOWN

CHI_WEIGHT = 0.5
ANGLE_NORM_WEIGHT = 0.01
"""The two parts of the torsion loss (AF2 Suppl. Alg. 27, and its code: 0.5 and 0.01)."""

_CA = 1


@dataclass(frozen=True, eq=False)
class LossTerms:
    """The loss of each chain of a batch and what it is made of.

    Attributes:
        total: weighted sum of the terms, times the square root of the number of residues.
        terms: each computed term by name, without weight: backbone_fape, sidechain_fape, chi,
            angle_norm, distogram, plddt, resolved, violation, pae.
    """

    total: Float[Tensor, "b"]
    terms: dict[str, Float[Tensor, "b"]]

    def faults(self, ids: Sequence[str]) -> list[str]:
        """Names every chain whose loss is not finite, and the terms at fault; [] if there is none.

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
        resolution_range: chains resolved to within these bounds (Å) train the heads of confidence;
            None: all chains.
    """
    terms: dict[str, Tensor] = {}
    with torch.autocast(output.positions.device.type, enabled=False):
        if weights.fape:
            terms |= _fape_terms(output, truth, clamp)
        if weights.chi:
            terms |= _torsion_terms(output, truth)
        if weights.violation:
            terms["violation"] = violation_loss(
                output.positions, truth.aatype, truth.residue_index, truth.mask
            )
        for head, term in _HEAD_TERMS.items():
            if getattr(weights, head):
                terms[head] = term(output, truth, resolution_range)
        factors = _factors(weights)
        total = torch.zeros_like(truth.resolution)
        for name, value in terms.items():
            total = total + factors[name] * value
        # Longer chains weigh more, though each term is a mean (AF2 Suppl. 1.9).
        return LossTerms(total * truth.mask.sum(-1).sqrt(), terms)


def _factors(weights: LossWeights) -> dict[str, float]:
    factors = {
        "backbone_fape": 0.5 * weights.fape,
        "sidechain_fape": 0.5 * weights.fape,
        "chi": CHI_WEIGHT * weights.chi,
        "angle_norm": ANGLE_NORM_WEIGHT * weights.chi,
    }
    return asdict(weights) | factors


def _fape_terms(
    output: FoldOutput, truth: GroundTruth, clamp: Float[Tensor, "b"]
) -> dict[str, Tensor]:
    renamed = rename_ambiguous(truth, output.positions)
    return {
        "backbone_fape": backbone_fape(output.frames, truth, clamp=clamp),
        "sidechain_fape": sidechain_fape(output.sidechain_frames, output.positions, renamed.atoms),
    }


def _torsion_terms(output: FoldOutput, truth: GroundTruth) -> dict[str, Tensor]:
    return {
        "chi": chi_loss(
            output.torsions,
            true=truth.torsions,
            alternative=truth.alternative_torsions,
            mask=truth.torsion_mask,
        ),
        "angle_norm": angle_norm_loss(output.unnormalized_torsions, truth.mask),
    }


def _distogram_term(
    output: FoldOutput, truth: GroundTruth, bounds: tuple[float, float] | None
) -> Tensor:
    logits = asked(output.distogram_logits, "distogram")
    return distogram_loss(logits, cb=truth.cb, mask=truth.cb_mask)


def _plddt_term(
    output: FoldOutput, truth: GroundTruth, bounds: tuple[float, float] | None
) -> Tensor:
    logits = asked(output.plddt_logits, "plddt")
    if logits.ndim == 4:
        return atom_plddt_loss(
            logits,
            predicted=output.positions,
            true=truth.atoms.positions,
            atom_mask=truth.atoms.atom_mask,
            aatype=truth.aatype,
            resolution=truth.resolution,
            resolution_range=bounds,
        )
    return plddt_loss(
        logits,
        predicted_ca=output.positions[:, :, _CA],
        true_ca=truth.ca,
        mask=truth.ca_mask,
        resolution=truth.resolution,
        resolution_range=bounds,
    )


def _resolved_term(
    output: FoldOutput, truth: GroundTruth, bounds: tuple[float, float] | None
) -> Tensor:
    # What a residue without a letter is made of is not known, so neither is what it lacks.
    known = truth.mask & (truth.aatype != UNKNOWN)
    exists = tables(truth.aatype.device).atom37_mask[truth.aatype] & known[..., None]
    return resolved_loss(
        asked(output.resolved_logits, "resolved"),
        exists=exists,
        resolved=atom14_to_atom37_mask(truth.aatype, truth.atoms.atom_mask),
        resolution=truth.resolution,
        resolution_range=bounds,
    )


def _pae_term(output: FoldOutput, truth: GroundTruth, bounds: tuple[float, float] | None) -> Tensor:
    return pae_loss(
        asked(output.pae_logits, "pae"),
        predicted_frames=output.frames[-1],
        true_frames=truth.backbone_frames,
        mask=truth.backbone_mask,
        resolution=truth.resolution,
        resolution_range=bounds,
    )


_HEAD_TERMS: dict[Head, Callable[..., Tensor]] = {
    "distogram": _distogram_term,
    "plddt": _plddt_term,
    "resolved": _resolved_term,
    "pae": _pae_term,
}
