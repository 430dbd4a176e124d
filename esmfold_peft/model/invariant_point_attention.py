"""Invariant point attention."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from esmfold_peft.config import StructureConfig
from esmfold_peft.geometry.rigid import Rigid
from esmfold_peft.model.linear import linear
from esmfold_peft.model.trunks.attention import MASKED_LOGIT

SOFTPLUS_INVERSE_OF_ONE = math.log(math.e - 1)

_THIRD = math.sqrt(1 / 3)
"""w_L of Alg. 22: the logits are three terms of variance 1 at initialisation."""


class InvariantPointAttention(nn.Module):
    """Attention over residues, their pairs and points in their frames (AF2 Suppl. Alg. 22).

    Moving all frames by one rigid motion leaves the result unchanged. Names and layouts of the
    parameters are OpenFold's.
    """

    def __init__(self, config: StructureConfig, *, c_s: int, c_z: int) -> None:
        super().__init__()
        self.heads = heads = config.heads
        self.c_hidden = c_hidden = config.c_ipa
        self.points = query_points, value_points = config.query_points, config.value_points
        # DISCREPANCY: the supplement's linear layers have no bias here; AlphaFold 2's code and
        # weights do.
        self.linear_q = linear(c_s, heads * c_hidden)
        self.linear_kv = linear(c_s, heads * 2 * c_hidden)
        self.linear_q_points = linear(c_s, heads * query_points * 3)
        self.linear_kv_points = linear(c_s, heads * (query_points + value_points) * 3)
        self.linear_b = linear(c_z, heads)
        self.head_weights = nn.Parameter(torch.full((heads,), SOFTPLUS_INVERSE_OF_ONE))
        self.linear_out = linear(heads * (c_hidden + 4 * value_points + c_z), c_s, init="zero")

    def pair_bias(self, z: Float[Tensor, "b n n c_z"]) -> Float[Tensor, "b h n n"]:
        """What the pair track adds to the logits: the same in all layers, so computed once."""
        return self.linear_b(z).movedim(-1, 1) * _THIRD

    def forward(
        self,
        s: Float[Tensor, "b n c_s"],
        z: Float[Tensor, "b n n c_z"],
        bias: Float[Tensor, "b h n n"],
        frames: Rigid,
        mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b n c_s"]:
        """Updates the single track; rows of residues that do not exist are finite and meaningless.

        Args:
            s: single track.
            z: pair track.
            bias: `pair_bias(z)`.
            frames: backbone frames of shape (b, n) in units of 10 Å.
            mask: which residues exist.
        """
        frames = _centered(frames, mask)
        q = self._by_head(self.linear_q(s)) * (_THIRD / math.sqrt(self.c_hidden))
        k, v = self._by_head(self.linear_kv(s)).chunk(2, dim=-1)
        q_points = self._points(self.linear_q_points(s), frames).flatten(-2)
        kv_points = self._points(self.linear_kv_points(s), frames).split(self.points, dim=-1)
        k_points, v_points = (points.flatten(-2) for points in kv_points)
        # In -w |q - k|², w |q|² is the same for all keys of a query: the softmax ignores it.
        w = self._point_weights()
        of_keys = (-w * k_points.square().sum(-1)).masked_fill(~mask[:, None], MASKED_LOGIT)
        queries = torch.cat((q, 2 * w[..., None] * q_points), dim=-1)
        logits = queries @ torch.cat((k, k_points), dim=-1).mT + bias
        weights = (logits + of_keys[:, :, None]).softmax(-1)

        average = weights @ torch.cat((v, v_points), dim=-1)
        of_residues, average_points = average.split((self.c_hidden, v_points.shape[-1]), dim=-1)
        of_residues = of_residues.transpose(1, 2).flatten(2)
        of_points = _seen_points(average_points, frames)
        of_pairs = (weights.transpose(1, 2) @ z).flatten(2)
        return self.linear_out(torch.cat((of_residues, of_points, of_pairs), dim=-1))

    def _by_head(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b h n c_head"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _points(self, x: Float[Tensor, "b n c"], frames: Rigid) -> Float[Tensor, "b h n 3 p"]:
        """Points out of their residues' frames; channels hold all x, then all y, then all z."""
        points = frames.rotation @ x.unflatten(-1, (3, -1)) + frames.translation[..., None]
        return points.unflatten(-1, (self.heads, -1)).movedim(3, 1)

    def _point_weights(self) -> Float[Tensor, "h 1"]:
        """The weight of a squared distance: w_L w_C γ / 2 of Alg. 22."""
        w_c = math.sqrt(2 / (9 * self.points[0]))
        return (_THIRD * w_c / 2 * functional.softplus(self.head_weights))[:, None]


def _centered(frames: Rigid, mask: Bool[Tensor, "b n"]) -> Rigid:
    """The frames, moved together so that their mean origin is 0, which changes no attention.

    Squared coordinates are then about as small, and so about as finely rounded, as squared
    distances: for a straight chain of 200 residues the result differs by 2e-5 from float64's.
    """
    known = torch.where(mask[..., None], frames.translation.detach(), 0.0)
    center = known.sum(1, keepdim=True) / mask.sum(1).clamp(min=1)[:, None, None]
    return Rigid(frames.rotation, frames.translation - center)


def _seen_points(average: Float[Tensor, "b h n c"], frames: Rigid) -> Float[Tensor, "b n c_out"]:
    """Brings averaged points, all x before all y and z, into the frames; appends their norms."""
    points = average.unflatten(-1, (3, -1)).movedim(1, 3).flatten(3)
    points = frames.rotation.mT @ (points - frames.translation[..., None])
    norms = torch.sqrt(points.square().sum(2) + 1e-8)
    return torch.cat((points.flatten(2), norms), dim=-1)
