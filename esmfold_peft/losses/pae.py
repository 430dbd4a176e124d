"""Loss of the predicted aligned error."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from esmfold_peft.geometry.rigid import Rigid
from esmfold_peft.losses.resolution import within_range
from esmfold_peft.model.confidence import aligned_error_breaks


def pae_loss(
    logits: Float[Tensor, "b n n bins"],
    *,
    predicted_frames: Rigid,
    true_frames: Rigid,
    mask: Bool[Tensor, "b n"],
    resolution: Float[Tensor, "b"],
    resolution_range: tuple[float, float] | None,
) -> Float[Tensor, "b"]:
    """Cross entropy of the aligned errors that the prediction has (AF2 Suppl. 1.9.7).

    Averaged over ordered pairs of known residues. 0 for a chain without any, and for one whose
    resolution is outside the range or unknown. The coordinates get no gradient; a NaN among them
    makes the loss NaN. In float32, also under autocast.

    Args:
        logits: [i, j] over bins of the error of residue j seen from residue i
            (`model.confidence`).
        predicted_frames: backbone frames of the same prediction, of shape (b, n), with their
            origin at Cα, in Å.
        true_frames: of shape (b, n); anything where masked.
        mask: residues whose true frame is known.
        resolution: Å; NaN if unknown.
        resolution_range: lowest and highest resolution that counts, in Å, limits included; None:
            every chain.
    """
    error = _aligned_error(predicted_frames, true_frames, mask)
    breaks = aligned_error_breaks(logits.shape[-1], logits.device)
    target = torch.bucketize(error, breaks.to(error.dtype))
    with torch.autocast(logits.device.type, enabled=False):
        cost = F.cross_entropy(logits.float().flatten(0, 2), target.flatten(), reduction="none")
    # NaN would count as the largest error: say that it is broken instead of teaching it.
    cost = cost.view_as(error).masked_fill(error.isnan(), torch.nan)
    mask = mask & within_range(resolution, resolution_range)[:, None]
    # As in AF2's code, the diagonal (always the first bin) is in the mean.
    known = mask[:, :, None] & mask[:, None, :]
    return (cost * known).sum((1, 2)) / known.sum((1, 2)).clamp(min=1)


@torch.no_grad()
def _aligned_error(
    predicted: Rigid, true: Rigid, mask: Bool[Tensor, "b n"]
) -> Float[Tensor, "b n n"]:
    """Error of every Cα (last axis) seen from every frame, in Å; meaningless where masked."""
    known = mask[:, :, None] & mask[:, None, :]
    with torch.autocast(mask.device.type, enabled=False):
        # Only the truth is replaced where unknown; a NaN of the prediction is to stay one.
        true_local = torch.where(known[..., None], _seen_from_all(true), 0.0)
        return torch.linalg.vector_norm(_seen_from_all(predicted) - true_local, dim=-1)


def _seen_from_all(frames: Rigid) -> Float[Tensor, "b n n 3"]:
    return frames.unsqueeze(-1).apply_inverse(frames.translation[:, None])
