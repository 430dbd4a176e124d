"""The block of ESMFold's trunk (Lin et al. 2023)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float
from torch import Tensor, nn

from esmfold_peft.model.dropout import Factors
from esmfold_peft.model.linear import linear
from esmfold_peft.model.trunks import packed
from esmfold_peft.model.trunks.attention import gated_attention
from esmfold_peft.model.trunks.triangles import (
    RowFunction,
    add,
    gather_rows,
    normalize,
    pair_bias,
    row_slices,
    transition,
    update_pairs,
)


class SequenceAttention(NamedTuple):
    """Gated attention over the sequence, biased by the pairs.

    `proj` gives query, key and value of each head in turn.
    """

    norm: packed.Norm
    bias: packed.Affine
    proj: packed.Affine
    gate: packed.Affine
    out: packed.Affine


class SequenceToPair(NamedTuple):
    """A linear map of the products and differences of two residues."""

    norm: packed.Norm
    proj: packed.Affine
    out: packed.Affine


class BlockWeights(NamedTuple):
    """A block's weights."""

    attention: SequenceAttention
    transition: packed.Transition
    to_pairs: SequenceToPair
    pairs: packed.PairUpdates


class EsmfoldBlock(nn.Module):
    """Attention over the sequence, then triangle updates of the pairs (ESMFold's folding block).

    Names and layouts of the parameters are those of the published model.

    Args:
        c_s: channels of the single track.
        c_z: channels of the pair track.
        heads: heads of the attention over the sequence.
        heads_pair: heads of the triangle attention.
    """

    def __init__(self, c_s: int, c_z: int, heads: int, heads_pair: int) -> None:
        super().__init__()
        self.layernorm_1 = nn.LayerNorm(c_s)
        self.sequence_to_pair = _SequenceToPair(c_s, c_z)
        self.pair_to_sequence = _PairToSequence(c_z, heads)
        self.seq_attention = _SequenceAttention(c_s)
        self.tri_mul_out = _TriangleMultiplication(c_z)
        self.tri_mul_in = _TriangleMultiplication(c_z)
        self.tri_att_start = _TriangleAttention(c_z, heads_pair)
        self.tri_att_end = _TriangleAttention(c_z, heads_pair)
        self.mlp_seq = _Transition(c_s)
        self.mlp_pair = _Transition(c_z)

    def pack(self, dtype: torch.dtype) -> BlockWeights:
        """The weights as `esmfold_block` takes them, for products in a type."""
        sequence, bias, to_pairs = self.seq_attention, self.pair_to_sequence, self.sequence_to_pair
        return BlockWeights(
            SequenceAttention(
                packed.norm_of(self.layernorm_1),
                packed.affine(bias.linear, dtype=dtype, norm=bias.layernorm),
                packed.affine(sequence.proj, dtype=dtype),
                packed.affine(sequence.g_proj, dtype=dtype),
                packed.affine(sequence.o_proj, dtype=dtype),
            ),
            self.mlp_seq.pack(dtype, folded=False),
            SequenceToPair(
                packed.norm_of(to_pairs.layernorm),
                packed.affine(to_pairs.proj, dtype=dtype),
                packed.affine(to_pairs.o_proj, dtype=dtype),
            ),
            packed.PairUpdates(
                packed.multiplication(self.tri_mul_out, dtype),
                packed.multiplication(self.tri_mul_in, dtype),
                self.tri_att_start.pack(dtype),
                self.tri_att_end.pack(dtype),
                self.mlp_pair.pack(dtype, folded=True),
            ),
        )


def esmfold_block(
    weights: BlockWeights,
    s: Float[Tensor, "b n c_s"],
    z: Float[Tensor, "b n n c_z"],
    factors: Factors,
    mask: Bool[Tensor, "b n"],
    chunk: int | None,
    lean: bool,
) -> tuple[Float[Tensor, "b n c_s"], Float[Tensor, "b n n c_z"]]:
    """Updates both tracks, leaving the given ones as they are.

    A function of tensors alone, for the compiler.

    Args:
        weights: of the block.
        s: single track.
        z: pair track.
        factors: dropout of the sequence's attention and transition, then of the five updates of
            the pairs.
        mask: which residues exist. Others do not change them and are themselves meaningless.
        chunk: rows of the pair track handled at a time at most; fewer take less memory. None for
            as many as are fast (inference on a CPU) or possible.
        lean: see `update_pairs`.
    """
    of_attention, of_transition, *of_pairs = factors
    bias = pair_bias(weights.attention.bias, z, mask, chunk, lean)
    s = add(s, _attend_sequence(weights.attention, s, bias), of_attention)
    s = add(s, transition(weights.transition, s), of_transition)
    update = _sequence_to_pair(weights.to_pairs, s)
    pieces = row_slices(z, z.shape[-1], chunk)
    # A new tensor, which the other updates may change in place.
    z = gather_rows(lambda rows: add(z[:, rows], update(rows)), pieces, z.shape[1], dim=1)
    return s, update_pairs(weights.pairs, z, mask, tuple(of_pairs), chunk, lean=lean)


def _attend_sequence(
    weights: SequenceAttention, s: Float[Tensor, "b n c_s"], bias: Float[Tensor, "b h n n"]
) -> Float[Tensor, "b n c_s"]:
    x = normalize(s, weights.proj.weight.dtype, weights.norm)
    by_head = F.linear(x, *weights.proj).unflatten(-1, (bias.shape[1], 3, -1))
    parts = (by_head.transpose(2, 3).flatten(2), F.linear(x, *weights.gate))
    return F.linear(gated_attention(torch.cat(parts, -1)[:, None], bias)[:, 0], *weights.out)


def _sequence_to_pair(weights: SequenceToPair, s: Float[Tensor, "b n c_s"]) -> RowFunction:
    """The update of rows i: W [q_j k_i, q_j - k_i] + w is affine in q_j, one product per i."""
    x = normalize(s, weights.proj.weight.dtype, weights.norm)
    q, k = F.linear(x, *weights.proj).chunk(2, -1)
    of_product, of_difference = weights.out.weight.t().chunk(2)
    assert weights.out.bias is not None
    offset = weights.out.bias - k @ of_difference

    def update(rows: slice) -> Float[Tensor, "b r n c_z"]:
        matrices = torch.addcmul(of_difference, k[:, rows, :, None], of_product)
        shared = q[:, None].expand(-1, matrices.shape[1], -1, -1)
        return shared @ matrices + offset[:, rows, None]

    return update


class _PairToSequence(nn.Module):
    """Bias of the sequence attention."""

    def __init__(self, c_z: int, heads: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(c_z)
        self.linear = linear(c_z, heads, init="zero", bias=False)


class _SequenceAttention(nn.Module):
    def __init__(self, c_s: int) -> None:
        super().__init__()
        self.proj = linear(c_s, 3 * c_s, bias=False)
        self.o_proj = linear(c_s, c_s, init="zero")
        self.g_proj = linear(c_s, c_s, init="gate")


class _SequenceToPair(nn.Module):
    def __init__(self, c_s: int, c_z: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(c_s)
        self.proj = linear(c_s, c_z)
        self.o_proj = linear(c_z, c_z, init="zero")


class _TriangleMultiplication(nn.Module):
    def __init__(self, c_z: int) -> None:
        super().__init__()
        self.layer_norm_in = nn.LayerNorm(c_z)
        self.layer_norm_out = nn.LayerNorm(c_z)
        self.linear_a_p = linear(c_z, c_z)
        self.linear_a_g = linear(c_z, c_z, init="gate")
        self.linear_b_p = linear(c_z, c_z)
        self.linear_b_g = linear(c_z, c_z, init="gate")
        self.linear_g = linear(c_z, c_z, init="gate")
        self.linear_z = linear(c_z, c_z, init="zero")


class _TriangleAttention(nn.Module):
    def __init__(self, c_z: int, heads: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(c_z)
        self.linear = linear(c_z, heads, bias=False)
        self.mha = _Projections(c_z)

    def pack(self, dtype: torch.dtype) -> packed.Attention:
        return packed.attention(self.layer_norm, self.linear, self.mha, dtype)


class _Projections(nn.Module):
    def __init__(self, c_z: int) -> None:
        super().__init__()
        self.linear_q = linear(c_z, c_z, bias=False)
        self.linear_k = linear(c_z, c_z, bias=False)
        self.linear_v = linear(c_z, c_z, bias=False)
        self.linear_g = linear(c_z, c_z, init="gate")
        self.linear_o = linear(c_z, c_z, init="zero")


class _Transition(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels),
            linear(channels, 4 * channels, init="relu"),
            nn.ReLU(),
            linear(4 * channels, channels, init="zero"),
        )

    def pack(self, dtype: torch.dtype, *, folded: bool) -> packed.Transition:
        norm, up, _, down = self.mlp
        return packed.transition(norm, up, down, dtype, folded=folded)
