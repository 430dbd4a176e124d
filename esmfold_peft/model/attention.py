"""Invariant point attention."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from esmfold_peft.geometry.rigid import Rigid
from esmfold_peft.model.linear import linear

MASKED_LOGIT = -1e9
SOFTPLUS_INVERSE_OF_ONE = math.log(math.e - 1)


class InvariantPointAttention(nn.Module):
    """Attention over residues, their pairs and points in their frames (AF2 Suppl. Alg. 22).

    Moving all frames by one rigid motion leaves the result unchanged. Names and layouts of the
    parameters are OpenFold's.

    Args:
        c_s: channels of the single track.
        c_z: channels of the pair track.
        c_hidden: channels of a head's queries, keys and values.
        heads: number of heads.
        query_points: query and key points of a head.
        value_points: value points of a head.
    """

    def __init__(
        self,
        *,
        c_s: int,
        c_z: int,
        c_hidden: int,
        heads: int,
        query_points: int,
        value_points: int,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.c_hidden = c_hidden
        self.query_points = query_points
        self.value_points = value_points
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
        """What the pair track adds to the logits; the same in all layers, so computed once."""
        return self.linear_b(z).movedim(-1, 1)

    def forward(
        self,
        s: Float[Tensor, "b n c_s"],
        z: Float[Tensor, "b n n c_z"],
        bias: Float[Tensor, "b h n n"],
        frames: Rigid,
        mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b n c_s"]:
        """Updates the single track.

        Args:
            s: single track.
            z: pair track.
            bias: `pair_bias(z)`.
            frames: backbone frames of shape (b, n) in units of 10 Å.
            mask: which residues exist. Rows of others are finite and meaningless.
        """
        q = self._by_head(self.linear_q(s))
        k, v = self._by_head(self.linear_kv(s)).chunk(2, dim=-1)
        q_points = self._points(self.linear_q_points(s), frames)
        k_points, v_points = self._points(self.linear_kv_points(s), frames).split(
            (self.query_points, self.value_points), dim=3
        )
        # Three terms of variance 1 at initialisation, hence the thirds (w_L of Alg. 22).
        logits = (q @ k.mT) * math.sqrt(1 / (3 * self.c_hidden)) + bias * math.sqrt(1 / 3)
        logits = logits - self._point_term(q_points, k_points)
        weights = logits.masked_fill(~mask[:, None, None, :], MASKED_LOGIT).softmax(-1)

        of_residues = (weights @ v).transpose(1, 2).flatten(2)
        of_points = self._attend_points(weights, v_points, frames)
        of_pairs = (weights.transpose(1, 2) @ z).flatten(2)
        return self.linear_out(torch.cat((of_residues, of_points, of_pairs), dim=-1))

    def _by_head(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b h n c_head"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _points(self, x: Float[Tensor, "b n c"], frames: Rigid) -> Float[Tensor, "b h n p 3"]:
        """Points out of their residues' frames; channels hold all x, then all y, then all z."""
        local = x.unflatten(-1, (3, -1)).mT
        return frames.unsqueeze(-1).apply(local).unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _point_term(
        self, q_points: Float[Tensor, "b h n p 3"], k_points: Float[Tensor, "b h n p 3"]
    ) -> Float[Tensor, "b h n n"]:
        """Weighted squared distances between query and key points.

        The sum over a head's points is one squared distance in 3 p dimensions. `cdist` computes it
        from differences (the expansion |q|² + |k|² - 2 q·k cancels for residues far from the
        origin) and keeps (b, h, n, n) for the backward pass where the differences would be 3 p
        times that.
        """
        distance = torch.cdist(
            q_points.flatten(-2),
            k_points.flatten(-2),
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        # w_L w_C / 2 of Alg. 22, with w_L = √(1/3) and w_C = √(2 / (9 points))
        scale = math.sqrt(1 / 3) * math.sqrt(2 / (9 * self.query_points)) / 2
        weight = scale * functional.softplus(self.head_weights)
        return weight[:, None, None] * distance**2

    def _attend_points(
        self,
        weights: Float[Tensor, "b h n n"],
        v_points: Float[Tensor, "b h n p 3"],
        frames: Rigid,
    ) -> Float[Tensor, "b n c"]:
        """Averages value points, brings them into the frames, appends their norms."""
        average = (weights @ v_points.flatten(-2)).unflatten(-1, (-1, 3))
        points = frames.unsqueeze(-1).apply_inverse(average.transpose(1, 2).flatten(2, 3))
        norms = torch.sqrt((points * points).sum(-1) + 1e-8)
        return torch.cat((points.mT.flatten(2), norms), dim=-1)
