"""The trunk of the released ESMFold (Lin et al. 2023)."""

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float
from torch import Tensor, nn

from esmfold_peft.config import ModelConfig
from esmfold_peft.model.dropout import Factors, Site
from esmfold_peft.model.heads import AtomPLDDTHead
from esmfold_peft.model.linear import linear, product_type
from esmfold_peft.model.trunks import packing
from esmfold_peft.model.trunks.attention import gated_attention
from esmfold_peft.model.trunks.base import Tracks
from esmfold_peft.model.trunks.blocks import BlockStack
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


class EsmfoldStack(BlockStack):
    """ESMFold's blocks, and the projections to the structure module."""

    # DISCREPANCY: ESMFold reserves entry 0 for padding, but its code and weights do not shift the
    # amino acids, so that alanine has it.
    first_amino_acid = 0
    mean_distogram = True
    plddt_head = AtomPLDDTHead

    def __init__(self, config: ModelConfig, *, compile: bool = False) -> None:
        super().__init__(config, esmfold_block, dropouts=7, compile=compile)
        self.config = c = config.esmfold
        self.blocks = nn.ModuleList(
            EsmfoldBlock(c.c_s, c.c_z, c.heads, c.heads_pair) for _ in range(c.blocks)
        )
        self.to_structure_s = nn.Linear(c.c_s, c.c_structure)
        self.to_structure_z = nn.Linear(c.c_z, c.c_z)

    def packed_blocks(self) -> list["BlockWeights"]:  # noqa: D102
        dtype = product_type(self.to_structure_z.weight)
        return [cast(EsmfoldBlock, block).pack(dtype) for block in self.blocks]

    def tracks(self, m: Float[Tensor, "b n c_s"], z: Float[Tensor, "b n n c_z"]) -> Tracks:  # noqa: D102
        return Tracks(m, z, self.to_structure_s(m), self.to_structure_z(z))

    def dropout_sites(self, residues: int) -> Any:
        """Those of each block. Pairs have twice as much, shared along rows or columns."""
        n, c = residues, self.config
        sequence = Site((n, c.c_s), c.dropout)
        rows = Site((1, n, c.c_z), 2 * c.dropout)
        columns = Site((n, 1, c.c_z), 2 * c.dropout)
        # The last of the triangles is for the transposed track.
        triangles = (columns, rows, columns, columns)
        block = (sequence, sequence, *triangles, Site((n, n, c.c_z), c.dropout))
        return (block,) * len(self.blocks)


class SequenceAttention(NamedTuple):
    """Gated attention over the sequence, biased by the pairs.

    `proj` gives query, key and value of one head after the other.
    """

    norm: packing.Norm
    bias: packing.Affine
    proj: packing.Affine
    gate: packing.Affine
    out: packing.Affine


class SequenceToPair(NamedTuple):
    """A linear map of the products and differences of two residues."""

    norm: packing.Norm
    proj: packing.Affine
    out: packing.Affine


class BlockWeights(NamedTuple):
    """A block's packed weights."""

    attention: SequenceAttention
    transition: packing.Transition
    to_pairs: SequenceToPair
    pairs: packing.PairUpdates


class EsmfoldBlock(nn.Module):
    """Attention over the sequence, then triangle updates of the pairs (ESMFold's folding block).

    Names and layouts of the parameters are those of the published model.
    """

    def __init__(self, c_s: int, c_z: int, heads: int, heads_pair: int) -> None:
        super().__init__()
        self.layernorm_1 = nn.LayerNorm(c_s)
        self.sequence_to_pair = _parts(
            layernorm=nn.LayerNorm(c_s),
            proj=linear(c_s, c_z),
            o_proj=linear(c_z, c_z, init="zero"),
        )
        self.pair_to_sequence = _parts(
            layernorm=nn.LayerNorm(c_z), linear=linear(c_z, heads, init="zero", bias=False)
        )
        self.seq_attention = _parts(
            proj=linear(c_s, 3 * c_s, bias=False),
            o_proj=linear(c_s, c_s, init="zero"),
            g_proj=linear(c_s, c_s, init="gate"),
        )
        self.tri_mul_out = _triangle_multiplication(c_z)
        self.tri_mul_in = _triangle_multiplication(c_z)
        self.tri_att_start = _triangle_attention(c_z, heads_pair)
        self.tri_att_end = _triangle_attention(c_z, heads_pair)
        self.mlp_seq = _transition(c_s)
        self.mlp_pair = _transition(c_z)

    def pack(self, dtype: torch.dtype) -> BlockWeights:
        """The weights as `esmfold_block` takes them, for products in a type."""
        sequence: Any = self.seq_attention
        bias: Any = self.pair_to_sequence
        to_pairs: Any = self.sequence_to_pair

        def transition_of(layers: Any, *, folded: bool) -> packing.Transition:
            norm, up, _, down = layers.mlp
            return packing.transition(norm, up, down, dtype, folded=folded)

        def attention_of(layers: Any) -> packing.Attention:
            return packing.attention(layers.layer_norm, layers.linear, layers.mha, dtype)

        return BlockWeights(
            SequenceAttention(
                packing.norm_of(self.layernorm_1),
                packing.affine(bias.linear, dtype=dtype, norm=bias.layernorm),
                packing.affine(sequence.proj, dtype=dtype),
                packing.affine(sequence.g_proj, dtype=dtype),
                packing.affine(sequence.o_proj, dtype=dtype),
            ),
            transition_of(self.mlp_seq, folded=False),
            SequenceToPair(
                packing.norm_of(to_pairs.layernorm),
                packing.affine(to_pairs.proj, dtype=dtype),
                packing.affine(to_pairs.o_proj, dtype=dtype),
            ),
            packing.PairUpdates(
                packing.multiplication(self.tri_mul_out, dtype),
                packing.multiplication(self.tri_mul_in, dtype),
                attention_of(self.tri_att_start),
                attention_of(self.tri_att_end),
                transition_of(self.mlp_pair, folded=True),
            ),
        )


def _parts(**layers: nn.Module) -> nn.ModuleDict:
    """Layers that have a name in common and are read as attributes."""
    return nn.ModuleDict(layers)


def _triangle_multiplication(c_z: int) -> nn.ModuleDict:
    return _parts(
        layer_norm_in=nn.LayerNorm(c_z),
        layer_norm_out=nn.LayerNorm(c_z),
        linear_a_p=linear(c_z, c_z),
        linear_a_g=linear(c_z, c_z, init="gate"),
        linear_b_p=linear(c_z, c_z),
        linear_b_g=linear(c_z, c_z, init="gate"),
        linear_g=linear(c_z, c_z, init="gate"),
        linear_z=linear(c_z, c_z, init="zero"),
    )


def _triangle_attention(c_z: int, heads: int) -> nn.ModuleDict:
    return _parts(
        layer_norm=nn.LayerNorm(c_z),
        linear=linear(c_z, heads, bias=False),
        mha=_parts(
            linear_q=linear(c_z, c_z, bias=False),
            linear_k=linear(c_z, c_z, bias=False),
            linear_v=linear(c_z, c_z, bias=False),
            linear_g=linear(c_z, c_z, init="gate"),
            linear_o=linear(c_z, c_z, init="zero"),
        ),
    )


def _transition(channels: int) -> nn.ModuleDict:
    mlp = nn.Sequential(
        nn.LayerNorm(channels),
        linear(channels, 4 * channels, init="relu"),
        nn.ReLU(),
        linear(4 * channels, channels, init="zero"),
    )
    return _parts(mlp=mlp)


def esmfold_block(
    weights: BlockWeights,
    s: Float[Tensor, "b n c_s"],
    z: Float[Tensor, "b n n c_z"],
    factors: Factors,
    mask: Bool[Tensor, "b n"],
    chunk: int | None,
    selective: bool,
) -> tuple[Float[Tensor, "b n c_s"], Float[Tensor, "b n n c_z"]]:
    """Updates both tracks, leaving the given ones as they are: a function of tensors alone.

    Args:
        weights: packed.
        s: single track.
        z: pair track.
        factors: dropout of the sequence's attention and transition, then of the five updates of
            the pairs.
        mask: which residues exist. Others do not change these; their own results mean nothing.
        chunk: rows of the pair track handled at a time at most; fewer take less memory. None for
            as many as are fast (inference on a CPU) or possible.
        selective: see `update_pairs`.
    """
    of_attention, of_transition, *of_pairs = factors
    bias = pair_bias(weights.attention.bias, z, mask, chunk, selective)
    s = add(s, _attend_sequence(weights.attention, s, bias), of_attention)
    s = add(s, transition(weights.transition, s), of_transition)
    update = _sequence_to_pair(weights.to_pairs, s)
    pieces = row_slices(z, z.shape[-1], chunk)
    # A new tensor, which the other updates may change in place.
    z = gather_rows(lambda rows: add(z[:, rows], update(rows)), pieces, z.shape[1], dim=1)
    return s, update_pairs(weights.pairs, z, mask, tuple(of_pairs), chunk, selective=selective)


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
