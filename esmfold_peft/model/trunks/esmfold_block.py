"""The block of ESMFold's trunk (Lin et al. 2023)."""

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float
from torch import Tensor, nn

from esmfold_peft.model.linear import linear
from esmfold_peft.model.trunks.triangles import (
    RowFunction,
    TriangleAttention,
    TriangleMultiplication,
    add_rows,
    attention_bias,
    gather_rows,
    normalized_rows,
    row_slices,
)


class EsmfoldBlock(nn.Module):
    """Attention over the sequence, then triangle updates of the pairs (ESMFold's folding block).

    Names and layouts of the parameters are those of the published model.

    Args:
        c_s: channels of the single track.
        c_z: channels of the pair track.
        heads: heads of the attention over the sequence.
        heads_pair: heads of the triangle attention.
        dropout: dropout of the single track and the transitions; triangle updates have twice it.
    """

    def __init__(self, c_s: int, c_z: int, heads: int, heads_pair: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.layernorm_1 = nn.LayerNorm(c_s)
        self.sequence_to_pair = _SequenceToPair(c_s, c_z)
        self.pair_to_sequence = _PairToSequence(c_z, heads)
        self.seq_attention = _SequenceAttention(c_s, heads)
        self.tri_mul_out = TriangleMultiplication(c_z, outgoing=True)
        self.tri_mul_in = TriangleMultiplication(c_z, outgoing=False)
        self.tri_att_start = TriangleAttention(c_z, heads_pair)
        self.tri_att_end = TriangleAttention(c_z, heads_pair)
        self.mlp_seq = _Transition(c_s, dropout)
        self.mlp_pair = _Transition(c_z, dropout)

    def forward(
        self,
        s: Float[Tensor, "b n c_s"],
        z: Float[Tensor, "b n n c_z"],
        mask: Bool[Tensor, "b n"],
        *,
        chunk: int | None = None,
    ) -> tuple[Float[Tensor, "b n c_s"], Float[Tensor, "b n n c_z"]]:
        """Updates both tracks, leaving the given ones as they are.

        Args:
            s: single track.
            z: pair track.
            mask: which residues exist. Others do not change them and are themselves meaningless.
            chunk: rows of the pair track handled at a time at most; fewer take less memory. None
                for as many as are fast (inference on a CPU) or possible.
        """
        bias = self.pair_to_sequence(z, mask, chunk)
        attended = self.seq_attention(self.layernorm_1(s), bias)
        s = s + F.dropout(attended, self.dropout, self.training)
        s = s + self.mlp_seq(s)
        return s, self._update_pairs(s, z, mask, chunk)

    def _update_pairs(
        self,
        s: Float[Tensor, "b n c_s"],
        z: Float[Tensor, "b n n c_z"],
        mask: Bool[Tensor, "b n"],
        chunk: int | None,
    ) -> Float[Tensor, "b n n c_z"]:
        z = self.sequence_to_pair(s, z, chunk)
        # A new tensor, which the other updates may change in place.
        z = self.tri_mul_out(z, mask, chunk, self._shared_dropout(z, 2))
        z = self.tri_mul_in(z, mask, chunk, self._shared_dropout(z, 1))
        z = self.tri_att_start(z, mask, chunk, self._shared_dropout(z, 2))
        z = z.transpose(1, 2)
        z = self.tri_att_end(z, mask, chunk, self._shared_dropout(z, 2)).transpose(1, 2)
        pieces = row_slices(z, 4 * z.shape[-1], chunk)
        return add_rows(z, lambda rows: self.mlp_pair(z[:, rows]), pieces)

    def _shared_dropout(
        self, z: Float[Tensor, "b n n c_z"], dim: int
    ) -> Float[Tensor, "b _ _ c_z"] | None:
        """Factors of an update, the same along a dimension (AF2 Suppl. 1.11.6)."""
        if not self.training or self.dropout == 0:
            return None
        shape = [1 if axis == dim else size for axis, size in enumerate(z.shape)]
        return F.dropout(z.new_ones(shape), 2 * self.dropout)


class _PairToSequence(nn.Module):
    """Bias of the sequence attention."""

    def __init__(self, c_z: int, heads: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(c_z)
        self.linear = linear(c_z, heads, init="zero", bias=False)

    def forward(
        self, z: Float[Tensor, "b n n c_z"], mask: Bool[Tensor, "b n"], chunk: int | None
    ) -> Float[Tensor, "b h n n"]:
        pieces = row_slices(z, z.shape[-1], chunk)
        normed = normalized_rows(self.layernorm, z)
        return attention_bias(normed, self.linear.weight, mask, pieces)


class _SequenceAttention(nn.Module):
    """Gated attention; the projection's channels are query, key and value of each head in turn."""

    def __init__(self, c_s: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.proj = linear(c_s, 3 * c_s, bias=False)
        self.o_proj = linear(c_s, c_s, init="zero")
        self.g_proj = linear(c_s, c_s, init="gate")

    def forward(
        self, s: Float[Tensor, "b n c_s"], bias: Float[Tensor, "b h n n"]
    ) -> Float[Tensor, "b n c_s"]:
        by_head = self.proj(s).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q, k, v = by_head.chunk(3, -1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.o_proj(self.g_proj(s).sigmoid() * mixed.transpose(1, 2).flatten(2))


class _SequenceToPair(nn.Module):
    """Adds to the pairs a linear map of the products and differences of their residues."""

    def __init__(self, c_s: int, c_z: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(c_s)
        self.proj = linear(c_s, c_z)
        self.o_proj = linear(c_z, c_z, init="zero")

    def forward(
        self, s: Float[Tensor, "b n c_s"], z: Float[Tensor, "b n n c_z"], chunk: int | None
    ) -> Float[Tensor, "b n n c_z"]:
        """Returns a new pair track."""
        update = self._update(s)
        pieces = row_slices(z, z.shape[-1], chunk)
        return gather_rows(lambda rows: z[:, rows] + update(rows), pieces, z.shape[1], dim=1)

    def _update(self, s: Float[Tensor, "b n c_s"]) -> RowFunction:
        """The update of rows i: W [q_j k_i, q_j - k_i] + w is affine in q_j, one product per i."""
        q, k = self.proj(self.layernorm(s)).chunk(2, -1)
        of_product, of_difference = self.o_proj.weight.t().chunk(2)
        offset = self.o_proj.bias - k @ of_difference

        def update(rows: slice) -> Float[Tensor, "b r n c_z"]:
            matrices = torch.addcmul(of_difference, k[:, rows, :, None], of_product)
            shared = q[:, None].expand(-1, matrices.shape[1], -1, -1)
            return shared @ matrices + offset[:, rows, None]

        return update


class _Transition(nn.Module):
    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels),
            linear(channels, 4 * channels, init="relu"),
            nn.ReLU(inplace=True),
            linear(4 * channels, channels, init="zero"),
            nn.Dropout(dropout),
        )

    def forward(self, x: Float[Tensor, "*batch c"]) -> Float[Tensor, "*batch c"]:
        return self.mlp(x)
