"""Frame aligned point error: how far atoms are from their true places, seen from every residue."""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from esmfold_peft.datasets.truth import GroundTruth, NamedAtoms
from esmfold_peft.geometry.rigid import Rigid

SIDECHAIN_CLAMP = 10.0
"""Å; side-chain errors are always cut here, backbone errors not always (AF2 Suppl. 1.9.2)."""

_SIDECHAIN_GROUPS = 6
"""Backbone, ψ and χ1 to χ4; ω and φ turn no heavy atom of the residue and have no true frame."""

_SCALE = 10.0
"""Error that counts as 1, in Å."""

_EPS = 1e-4
"""Added to squared errors (Å²), so that the gradient is finite at 0: a perfect prediction has loss
sqrt(eps) / scale."""


def fape(
    predicted_frames: Rigid,
    true_frames: Rigid,
    frame_mask: Bool[Tensor, "b f"],
    predicted_points: Float[Tensor, "b p 3"],
    true_points: Float[Tensor, "b p 3"],
    point_mask: Bool[Tensor, "b p"],
    *,
    clamp: Float[Tensor, "b"],
    parts: int = 1,
) -> Float[Tensor, "b"]:
    """Frame aligned point error (AF2 Suppl. Alg. 28).

    Every known point is expressed in every known frame, in prediction and truth; the loss is the
    mean distance between the two, each cut at `clamp`, over 10 Å. A mirror image does not pass.
    0 for a chain without known frames or points; NaN if the prediction has a NaN.

    Args:
        predicted_frames: of shape (b, f).
        true_frames: of shape (b, f); anything where masked.
        frame_mask: frames whose truth is known.
        predicted_points: Å.
        true_points: Å; anything where masked.
        point_mask: points whose truth is known.
        clamp: largest error of each chain in Å; infinity does not cut.
        parts: of the frames, done one after the other to save memory, and again in the backward
            pass.
    """
    with torch.autocast(predicted_points.device.type, enabled=False):
        rows, columns = _coordinates(
            predicted_frames, true_frames, frame_mask, predicted_points, true_points, point_mask
        )
        if parts == 1:
            error = _summed_error(rows, columns, frame_mask, point_mask, clamp)
        else:
            error = predicted_points.new_zeros(len(predicted_points))
            for part, mask in zip(rows.chunk(parts, 1), frame_mask.chunk(parts, 1), strict=True):
                given = part, columns, mask, point_mask, clamp
                error = error + checkpoint(
                    _summed_error, *given, use_reentrant=False, preserve_rng_state=False
                )
        count = (frame_mask.sum(-1) * point_mask.sum(-1)).clamp(min=1)
    return error / (_SCALE * count)


def backbone_fape(
    frames: Rigid, truth: GroundTruth, *, clamp: Float[Tensor, "b"]
) -> Float[Tensor, "b"]:
    """FAPE of Cα in backbone frames, the mean over layers (AF2 Suppl. Alg. 20 lines 17 and 23).

    The predicted frames have the shape (k, b, n).
    """
    layers = frames.shape[0]
    true_frames = Rigid.stack([truth.backbone_frames] * layers).flatten(0, 1)
    frames, mask = frames.flatten(0, 1), truth.backbone_mask.repeat(layers, 1)
    points, true_points = frames.translation, true_frames.translation
    clamp = clamp.repeat(layers)
    error = fape(frames, true_frames, mask, points, true_points, mask, clamp=clamp)
    return error.unflatten(0, (layers, -1)).mean(0)


def sidechain_fape(
    frames: Rigid, positions: Float[Tensor, "b n 14 3"], truth: NamedAtoms
) -> Float[Tensor, "b"]:
    """FAPE of all atoms in all rigid groups, cut at 10 Å (AF2 Suppl. Alg. 20 line 28).

    The (6 n x 14 n) errors are made n rows at a time: measured at 256 residues, the peak is 47 MB
    instead of 134.

    The predicted frames have the shape (b, n, 8). The atoms of the truth must have the names that
    fit the prediction (`naming.rename_ambiguous`).
    """
    return fape(
        _sidechain_frames(frames),
        _sidechain_frames(truth.group_frames),
        _of_sidechains(truth.group_mask),
        positions.flatten(1, 2),
        truth.positions.flatten(1, 2),
        truth.atom_mask.flatten(1, 2),
        clamp=positions.new_full((len(positions),), SIDECHAIN_CLAMP),
        parts=_SIDECHAIN_GROUPS,
    )


def _sidechain_frames(frames: Rigid) -> Rigid:
    return Rigid(_of_sidechains(frames.rotation), _of_sidechains(frames.translation))


def _of_sidechains(groups: Shaped[Tensor, "b n 8 *rest"]) -> Shaped[Tensor, "b f *rest"]:
    return torch.cat((groups[:, :, :1], groups[:, :, 3:]), 2).flatten(1, 2)


def _coordinates(
    frames: Rigid,
    true_frames: Rigid,
    frame_mask: Bool[Tensor, "b f"],
    points: Float[Tensor, "b p 3"],
    true_points: Float[Tensor, "b p 3"],
    point_mask: Bool[Tensor, "b p"],
) -> tuple[Float[Tensor, "b f 3 7"], Float[Tensor, "b 7 p"]]:
    """Factors of every point in every frame, less the same of the truth: Rᵀ(x - t) - Sᵀ(y - u).

    One matrix product a chain, [Rᵀ, -Sᵀ, Sᵀu - Rᵀt] (x, y, 1). With the center at the origin its
    terms are small, so that little is lost to rounding. `Rigid.apply_inverse` would copy the
    rotations for every point, and rows of three numbers take several times as long.
    """
    # Only the truth is replaced where unknown; a NaN of the prediction must stay one.
    true_frames = Rigid(
        torch.where(frame_mask[..., None, None], true_frames.rotation, 0.0),
        torch.where(frame_mask[..., None], true_frames.translation, 0.0),
    )
    true_points = torch.where(point_mask[..., None], true_points, 0.0)
    frames, points = _centered(frames, points, point_mask)
    true_frames, true_points = _centered(true_frames, true_points, point_mask)
    turns = torch.cat((frames.rotation, -true_frames.rotation), -2).mT
    places = torch.cat((frames.translation, true_frames.translation), -1)[..., None]
    rows = torch.cat((turns, -(turns @ places)), -1)
    ones = torch.ones_like(points[..., :1])
    return rows, torch.cat((points, true_points, ones), -1).mT


def _summed_error(
    rows: Float[Tensor, "b f 3 7"],
    columns: Float[Tensor, "b 7 p"],
    frame_mask: Bool[Tensor, "b f"],
    point_mask: Bool[Tensor, "b p"],
    clamp: Float[Tensor, "b"],
) -> Float[Tensor, "b"]:
    """The sum of known errors, each cut.

    It makes few passes over (f x p) numbers. Matrix products with the masks take half the time of
    `where` on one core.
    """
    deviation = (rows.flatten(1, 2) @ columns).unflatten(1, (-1, 3))
    error = torch.sqrt(deviation.square().sum(2) + _EPS)
    cut = error.clamp(max=clamp[:, None, None])
    # 0 x NaN is NaN.
    of_frames = (cut @ point_mask[..., None].to(cut.dtype)).squeeze(-1)
    return (of_frames * frame_mask).sum(1)


def _centered(
    frames: Rigid, points: Float[Tensor, "b p 3"], mask: Bool[Tensor, "b p"]
) -> tuple[Rigid, Float[Tensor, "b p 3"]]:
    """Frames and points, moved together so that the mean known point is the origin."""
    known = torch.where(mask[..., None], points.detach(), 0.0)
    center = known.sum(1, keepdim=True) / mask.sum(1).clamp(min=1)[:, None, None]
    return Rigid(frames.rotation, frames.translation - center), points - center
