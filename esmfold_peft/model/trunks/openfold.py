"""The OpenFold Evoformer in single-sequence mode: the only place that imports openfold3."""

import os
import warnings
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from esmfold_peft.config import EvoformerConfig, ModelConfig
from esmfold_peft.model.dropout import Factors, Site
from esmfold_peft.model.linear import product_type
from esmfold_peft.model.trunks import packing
from esmfold_peft.model.trunks.attention import MASKED_LOGIT, gated_attention
from esmfold_peft.model.trunks.base import Tracks
from esmfold_peft.model.trunks.blocks import BlockStack
from esmfold_peft.model.trunks.triangles import (
    RowFunction,
    add,
    add_rows,
    normalize,
    pair_bias,
    row_slices,
    transition,
    update_pairs,
)


class OuterProduct(NamedTuple):
    """The outer product mean of a single row (AF2 Suppl. Alg. 10); `half` is (c_z c_opm, c_opm)."""

    one_two: packing.Affine
    half: Tensor
    bias: Tensor


class BlockWeights(NamedTuple):
    """A block's weights."""

    row: packing.Attention
    transition: packing.Transition
    outer: OuterProduct
    pairs: packing.PairUpdates


class Evoformer(BlockStack):
    """Evoformer blocks on one MSA row (AF2 Suppl. Alg. 6), without column attention.

    One row is what ESMFold has: row attention with pair bias, transition, outer product mean,
    triangle multiplications and triangle attention. Modules, names and initialisation are
    openfold3's, and so is the definition of a block (`model.kernels: openfold`); the fused block
    computes the same with fewer and larger operations.
    """

    def __init__(self, config: ModelConfig, *, compile: bool = False) -> None:
        super().__init__(config, fused_block, dropouts=5, compile=compile)
        self.config = config.evoformer
        self.kernels = config.kernels
        with _quiet_import(), _numpy_seeded_by_torch():
            stack = _stack(config.evoformer)
        self.blocks: nn.ModuleList = stack.blocks
        self.linear: nn.Linear = stack.linear
        # openfold3 names "cuda" in an autocast that it disables: on a CPU every call warns.
        warnings.filterwarnings("ignore", message="CUDA is not available or torch_xla")

    def packed_blocks(self) -> list[BlockWeights]:  # noqa: D102
        dtype = product_type(self.linear.weight)
        return [_pack(block, dtype) for block in self.blocks]

    def pack(self) -> list[BlockWeights] | None:  # noqa: D102
        return super().pack() if self.kernels == "fused" else None

    def tracks(self, m: Float[Tensor, "b n c_m"], z: Float[Tensor, "b n n c_z"]) -> Tracks:  # noqa: D102
        return Tracks(m, z, self.linear(m), z)

    def forward(
        self,
        m: Float[Tensor, "b n c_m"],
        z: Float[Tensor, "b n n c_z"],
        mask: Bool[Tensor, "b n"],
        packed: list[BlockWeights] | None = None,
        dropout: tuple[Factors, ...] | None = None,
    ) -> Tracks:
        """Runs all blocks; z is overwritten where no gradients are asked for."""
        if self.kernels == "fused":
            return super().forward(m, z, mask, packed, dropout)
        pairs = (mask[:, :, None] & mask[:, None, :]).to(z.dtype)
        row, m = mask[:, None].to(m.dtype), m[:, None]
        for block in self.blocks:
            masks = {"msa_mask": row, "pair_mask": pairs, "chunk_size": self.chunk}
            if self.recompute and torch.is_grad_enabled():
                m, z = checkpoint(block, m, z, **masks, use_reentrant=False)
            else:
                m, z = block(m, z, **masks)
        return self.tracks(m[:, 0], z)

    def dropout_sites(self, residues: int) -> Any:
        """Those of each block, in openfold3's order: the row, four triangle updates.

        All pairs with the same second residue share a factor (AF2 Suppl. 1.11.6).
        openfold3's own forward pass draws for itself.
        """
        c = self.config
        row = Site((residues, c.c_m), c.dropout_msa)
        pairs = Site((1, residues, c.c_z), c.dropout_pair)
        return None if self.kernels == "openfold" else ((row, *(pairs,) * 4),) * c.blocks


def fused_block(
    weights: BlockWeights,
    m: Float[Tensor, "b n c_m"],
    z: Float[Tensor, "b n n c_z"],
    factors: Factors,
    mask: Bool[Tensor, "b n"],
    chunk: int | None,
    selective: bool,
) -> tuple[Float[Tensor, "b n c_m"], Float[Tensor, "b n n c_z"]]:
    """A block of openfold3 on a single row: a function of tensors alone, for the compiler.

    Args:
        weights: packed.
        m: the row of the MSA track.
        z: pair track; where `changes_in_place`, it is overwritten.
        factors: dropout of the row's attention and of the four triangle updates.
        mask: which residues exist.
        chunk: rows of the pair track at a time at most.
        selective: see `update_pairs`.
    """
    of_row, *of_pairs = factors
    row = weights.row
    bias = pair_bias(row.bias, z, mask, chunk, selective)
    projected = F.linear(normalize(m, row.qkvg.weight.dtype, row.norm), *row.qkvg)
    mixed = gated_attention(projected[:, None], bias)[:, 0]
    m = add(m, F.linear(mixed, *row.out), of_row)
    m = m + transition(weights.transition, m)
    z = add_rows(z, _outer_product(weights.outer, m), row_slices(z, z.shape[-1], chunk))
    return m, update_pairs(weights.pairs, z, mask, (*of_pairs, None), chunk, selective=selective)


def _outer_product(weights: OuterProduct, m: Float[Tensor, "b n c_m"]) -> RowFunction:
    """The outer product mean of a single row, for some rows of pairs, never made in full.

    The outer product of two residues has c_opm² numbers, which a matrix turns into c_z. Half of
    that product is done before the residues are paired: c_opm times fewer multiplications, and
    no array of n x n x c_opm². The result differs by rounding.
    """
    row = normalize(m, weights.half.dtype)
    one, two = F.linear(row, *weights.one_two).chunk(2, -1)
    half = F.linear(two, weights.half).view(len(m), -1, one.shape[-1]).mT

    def update(rows: slice) -> Float[Tensor, "b r n c_z"]:
        return (one[:, rows] @ half).unflatten(-1, (m.shape[1], -1)) + weights.bias

    return update


def _pack(block: Any, dtype: torch.dtype) -> BlockWeights:
    row, outer, pairs = block.msa_att_row, block.outer_product_mean, block.pair_stack
    # A mean over one row; openfold3 and AF2 divide by 1 + eps.
    last = packing.affine(outer.linear_out, dtype=dtype)
    mean = 1 / (1 + outer.eps)
    return BlockWeights(
        packing.attention(row.layer_norm_m, row.linear_z, row.mha, dtype, row.layer_norm_z),
        _pack_transition(block.msa_transition, dtype, folded=False),
        OuterProduct(
            packing.affine(outer.linear_1, outer.linear_2, dtype=dtype, norm=outer.layer_norm),
            last.weight.view(-1, outer.c_hidden) * mean,
            last.bias * mean,
        ),
        packing.PairUpdates(
            packing.multiplication(pairs.tri_mul_out, dtype),
            packing.multiplication(pairs.tri_mul_in, dtype),
            _pack_attention(pairs.tri_att_start, dtype),
            _pack_attention(pairs.tri_att_end, dtype),
            _pack_transition(pairs.pair_transition, dtype, folded=True),
        ),
    )


def _pack_attention(layer: Any, dtype: torch.dtype) -> packing.Attention:
    return packing.attention(layer.layer_norm, layer.linear_z, layer.mha, dtype)


def _pack_transition(layer: Any, dtype: torch.dtype, *, folded: bool) -> packing.Transition:
    (up,), down = layer.transition_mlp.layers, layer.transition_mlp.linear_out
    return packing.transition(layer.layer_norm, up[0], down, dtype, folded=folded)


def _stack(config: EvoformerConfig) -> Any:
    from openfold3.core.model.latent.evoformer import EvoformerStack

    stack: Any = EvoformerStack(
        c_m=config.c_m,
        c_z=config.c_z,
        c_s=config.c_s,
        c_hidden_msa_att=config.c_head_msa,
        c_hidden_opm=config.c_opm,
        c_hidden_mul=config.c_mul,
        c_hidden_pair_att=config.c_head_pair,
        no_heads_msa=config.heads_msa,
        no_heads_pair=config.heads_pair,
        no_blocks=config.blocks,
        transition_type="relu",
        transition_n=config.transition,
        msa_dropout=config.dropout_msa,
        pair_dropout=config.dropout_pair,
        no_column_attention=True,
        opm_first=False,
        fuse_projection_weights=False,
        blocks_per_ckpt=None,
        use_reentrant=False,
        inf=-MASKED_LOGIT,
        eps=1e-8,
        linear_init_params=_alphafold2_init(),
    )
    for block in stack.blocks:
        block.pair_stack.tri_att_end.__class__ = _ending_node()
    return stack


@cache
def _ending_node() -> type[nn.Module]:
    """Attention around the ending node whose bias is that of AF2 Suppl. Alg. 14: z_ki for i and k.

    DISCREPANCY: openfold3 transposes it (z_ik), as AlphaFold 3's code does.
    """
    from openfold3.core.model.layers.triangular_attention import TriangleAttention

    class EndingNode(TriangleAttention):
        def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
            self,
            x: Tensor,
            mask: Tensor | None = None,
            transpose_bias: bool = False,
            **arguments: Any,
        ) -> Tensor:
            return super().forward(x, mask, transpose_bias=False, **arguments)

    return EndingNode


def _alphafold2_init():
    """Initialisation and biases of AlphaFold 2; openfold3's default leaves these biases out.

    Built again each time, because openfold3's own entries are shared objects.
    """
    from ml_collections import ConfigDict

    def layers(*, bias: bool = True, **init: str) -> dict:
        return {f"linear_{name}": {"bias": bias, "init": how} for name, how in init.items()}

    projections = layers(q="glorot", k="glorot", v="glorot", bias=False)
    mha = projections | layers(g="gating", o="final")
    attention = layers(z="normal", bias=False) | {"mha": mha}
    default = {"bias": True, "init": "default"}
    transition = {"relu": {"layers": {"bias": True, "init": "relu"}, **layers(out="final")}}
    sides = layers(a_p="default", a_g="gating", b_p="default", b_g="gating")
    multiplication = sides | layers(g="gating", z="final")
    return ConfigDict(
        {
            "msa_row_att": attention,
            "msa_transition": transition,
            "opm": {"linear_1": default, "linear_2": default, **layers(out="final")},
            "pair_block": {
                "tri_mul": multiplication,
                "tri_att": attention,
                "pair_transition": transition,
            },
            "linear": default,
        }
    )


@contextmanager
def _quiet_import():
    """Drops the warnings of importing openfold3, and its change of the warning filters."""
    if not torch.cuda.is_available():
        # openfold3 imports DeepSpeed, which otherwise reports at length that it found no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with warnings.catch_warnings(record=True):
        yield


@contextmanager
def _numpy_seeded_by_torch():
    """Ties NumPy's global generator, from which openfold3 draws weights, to PyTorch's."""
    state = np.random.get_state()
    np.random.seed(int(torch.randint(2**31, ())))
    try:
        yield
    finally:
        np.random.set_state(state)
