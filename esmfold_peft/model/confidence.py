"""Expected lDDT, aligned error and TM-score from the logits of the confidence heads."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LAST_ERROR_BREAK = 31.0
"""Larger aligned errors fall into the last bin, in Å (AF2 Suppl. 1.9.7: 0.5 Å a bin at 64 bins)."""

SHORTEST_TM_LENGTH = 19
"""Shorter chains have the scale of the TM-score of this length (AF2's code)."""


def expected_lddt(logits: Float[Tensor, "*batch bins"]) -> Float[Tensor, "*batch"]:
    """Mean of the predicted distribution over equal bins of lDDT, 0 to 1 (AF2 Suppl. Alg. 29)."""
    bins = logits.shape[-1]
    return _expected(logits, (torch.arange(bins, device=logits.device) + 0.5) / bins)


def aligned_error_breaks(bins: int, device: torch.device) -> Float[Tensor, "breaks"]:
    """The `bins - 1` bounds between bins of aligned errors, from 0 to 31 Å."""
    return torch.linspace(0, LAST_ERROR_BREAK, bins - 1, device=device)


def aligned_error_centers(bins: int, device: torch.device) -> Float[Tensor, "bins"]:
    """The error in Å that each bin stands for when a prediction is read."""
    # DISCREPANCY: by AF2 Suppl. 1.9.7 bin 0 is 0 to 0.5 Å. In the code of AF2 and OpenFold, so in
    # ESMFold's weights, the first break is 0: the bin below it holds the errors of exactly 0, those
    # of a frame's own residue, and every other bin is read one step above its middle.
    step = LAST_ERROR_BREAK / (bins - 2)
    return (torch.arange(bins, device=device) + 0.5) * step


def largest_aligned_error(bins: int) -> float:
    """The error in Å that the last bin stands for, so the largest that can be predicted."""
    return aligned_error_centers(bins, torch.device("cpu"))[-1].item()


def predicted_aligned_error(logits: Float[Tensor, "b n n bins"]) -> Float[Tensor, "b n n"]:
    """Expected aligned error in Å of residue j seen from the frame of residue i, at [i, j].

    PAE of AF2 Suppl. 1.9.7. Holds one copy of the logits in float32 besides the logits.
    """
    return _expected(logits, aligned_error_centers(logits.shape[-1], logits.device))


def predicted_tm(
    logits: Float[Tensor, "b n n bins"], mask: Bool[Tensor, "b n"]
) -> Float[Tensor, "b"]:
    """Expected TM-score of each chain, 0 to 1 (pTM, AF2 Suppl. eq. 38 to 40).

    The frame with the highest score counts. Padding has no score, and the length is the chain's
    own. NaN for a chain without residues or with a NaN in a pair of its
    residues. Holds one chain's logits in float32 besides the logits.

    Args:
        logits: over bins of the aligned error; anything where masked.
        mask: which residues exist.
    """
    return torch.stack([_chain_tm(*chain) for chain in zip(logits, mask, strict=True)])


def _chain_tm(logits: Float[Tensor, "n n bins"], mask: Bool[Tensor, "n"]) -> Float[Tensor, ""]:
    # The host does not read the mask: it would have to wait for the device.
    length = mask.sum()
    d0 = 1.24 * (length.clamp(min=SHORTEST_TM_LENGTH) - 15) ** (1 / 3) - 1.8
    centers = aligned_error_centers(logits.shape[-1], logits.device)
    score = _expected(logits, 1 / (1 + (centers / d0).square()))
    of_frames = score.masked_fill(~mask, 0.0).sum(-1) / length
    return of_frames.masked_fill(~mask & (length > 0), -torch.inf).amax()


def _expected(
    logits: Float[Tensor, "*batch bins"], values: Float[Tensor, "bins"]
) -> Float[Tensor, "*batch"]:
    # A product with a vector, because an elementwise one would copy the n x n x bins probabilities.
    # Autocast would round it to bfloat16.
    with torch.autocast(logits.device.type, enabled=False):
        return logits.softmax(-1, dtype=torch.float32) @ values
