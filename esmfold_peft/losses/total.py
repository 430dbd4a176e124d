"""The training loss: a weighted sum of terms for each chain."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from esmfold_peft.config import LossWeights
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.losses.distogram import distogram_loss
from esmfold_peft.losses.fape import backbone_fape, sidechain_fape
from esmfold_peft.losses.plddt import plddt_loss
from esmfold_peft.losses.torsion import angle_norm_loss, chi_loss
from esmfold_peft.losses.truth import GroundTruth, ground_truth, rename_ambiguous
from esmfold_peft.model.output import FoldOutput

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
            angle_norm, distogram, plddt.
    """

    total: Float[Tensor, "b"]
    terms: dict[str, Float[Tensor, "b"]]


def fold_loss(
    output: FoldOutput,
    batch: Batch,
    weights: LossWeights,
    *,
    clamp: Float[Tensor, "b"],
    resolution_range: tuple[float, float] | None = (0.1, 3.0),
) -> LossTerms:
    """Loss of initial training (AF2 Suppl. 1.9, eq. 7, less the masked language model).

    In float32, also under autocast. A term without any known truth is 0; a NaN in the prediction
    gives NaN.

    Args:
        output: prediction.
        batch: the same chains with their true structures.
        weights: of the terms; a term of weight 0 is neither computed nor reported.
        clamp: where the backbone error of each chain is cut, in Å; infinity does not cut.
        resolution_range: chains resolved to within these bounds (Å) train the pLDDT head; None: all
            chains.
    """
    terms: dict[str, Tensor] = {}
    with torch.autocast(batch.positions.device.type, enabled=False):
        truth = ground_truth(batch)
        if weights.fape:
            terms |= _fape_terms(output, truth, clamp)
        if weights.chi:
            terms |= _torsion_terms(output, truth, batch)
        if weights.distogram:
            terms["distogram"] = distogram_loss(
                output.distogram_logits, cb=truth.cb, mask=truth.cb_mask
            )
        if weights.plddt:
            terms["plddt"] = _plddt_term(output, truth, batch, resolution_range)
        factors = _factors(weights)
        total = batch.positions.new_zeros(len(batch.ids))
        for name, term in terms.items():
            total = total + factors[name] * term
        # Longer chains weigh more, though each term is a mean (AF2 Suppl. 1.9).
        return LossTerms(total * batch.mask.sum(-1).sqrt(), terms)


def _factors(weights: LossWeights) -> dict[str, float]:
    return {
        "backbone_fape": 0.5 * weights.fape,
        "sidechain_fape": 0.5 * weights.fape,
        "chi": CHI_WEIGHT * weights.chi,
        "angle_norm": ANGLE_NORM_WEIGHT * weights.chi,
        "distogram": weights.distogram,
        "plddt": weights.plddt,
    }


def _fape_terms(
    output: FoldOutput, truth: GroundTruth, clamp: Float[Tensor, "b"]
) -> dict[str, Tensor]:
    renamed = rename_ambiguous(truth, output.positions)
    return {
        "backbone_fape": backbone_fape(output.frames, truth, clamp=clamp),
        "sidechain_fape": sidechain_fape(output.sidechain_frames, output.positions, renamed.atoms),
    }


def _torsion_terms(output: FoldOutput, truth: GroundTruth, batch: Batch) -> dict[str, Tensor]:
    return {
        "chi": chi_loss(
            output.torsions,
            true=truth.torsions,
            alternative=truth.alternative_torsions,
            mask=truth.torsion_mask,
        ),
        "angle_norm": angle_norm_loss(output.unnormalized_torsions, batch.mask),
    }


def _plddt_term(
    output: FoldOutput,
    truth: GroundTruth,
    batch: Batch,
    resolution_range: tuple[float, float] | None,
) -> Tensor:
    return plddt_loss(
        output.plddt_logits,
        predicted_ca=output.positions[:, :, _CA],
        true_ca=truth.ca,
        mask=truth.ca_mask,
        resolution=batch.resolution,
        resolution_range=resolution_range,
    )
