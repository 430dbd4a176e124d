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

from esmfold_peft.config import EvoformerConfig, Kernels, ModelConfig
from esmfold_peft.model.compiling import compiled_for_training
from esmfold_peft.model.dropout import Factors, Site
from esmfold_peft.model.trunks import packed
from esmfold_peft.model.trunks.attention import gated_attention
from esmfold_peft.model.trunks.base import Stack, Tracks
from esmfold_peft.model.trunks.blocks import product_type, run_blocks
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

_INF = 1e9  # added to masked attention logits; finite in bfloat16
_EPS = 1e-8
_NO_DROPOUT: Factors = (None,) * 5


class OuterProduct(NamedTuple):
    """The outer product mean of a single row (AF2 Suppl. Alg. 10); `half` is (c_z c_opm, c_opm)."""

    one_two: packed.Affine
    half: Tensor
    bias: Tensor


class BlockWeights(NamedTuple):
    """A block's weights."""

    row: packed.Attention
    transition: packed.Transition
    outer: OuterProduct
    pairs: packed.PairUpdates


class Evoformer(Stack):
    """Evoformer blocks on one MSA row (AF2 Suppl. Alg. 6), without column attention.

    One row is what ESMFold has: row attention with pair bias, transition, outer product mean,
    triangle multiplications and triangle attention. Modules, names and initialisation are
    openfold3's, and so is the definition of a block; the same is computed here with fewer and
    larger operations. Weights are drawn from PyTorch's generator.

    Args:
        config: sizes, dropout and checkpointing.
        chunk: rows of the pair track at a time; None chooses.
        kernels: "fused", or openfold3's own forward pass ("openfold").
        compile: compile the blocks for training.
    """

    def __init__(
        self,
        config: EvoformerConfig,
        *,
        chunk: int | None = None,
        kernels: Kernels = "fused",
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.chunk = chunk
        self.kernels = kernels
        self.recompute, self.compiled = config.checkpoint is not False, compile
        self.step = compiled_for_training(fused_block) if compile else fused_block
        self.inference_step = fused_block
        with _quiet_import(), _numpy_seeded_by_torch():
            stack = _stack(config)
        self.blocks: nn.ModuleList = stack.blocks
        self.linear: nn.Linear = stack.linear
        self.packing = packed.Packing(self._pack)
        # openfold3 names "cuda" in an autocast that it disables: on a CPU every call warns.
        warnings.filterwarnings("ignore", message="CUDA is not available or torch_xla")

    @classmethod
    def of(cls, config: ModelConfig, *, compile: bool) -> "Evoformer":
        """Makes the blocks that the settings ask for."""
        chunk, kernels = config.chunk, config.kernels
        return cls(config.evoformer, chunk=chunk, kernels=kernels, compile=compile)

    def pack(self) -> list[BlockWeights] | None:
        """The blocks' weights for all passes of a step, in autocast's type where it is on."""
        return self.packing.nested() if self.kernels == "fused" else None

    def _pack(self) -> list[BlockWeights]:
        dtype = product_type(self.linear.weight)
        return [_pack(block, dtype) for block in self.blocks]

    def forward(
        self,
        m: Float[Tensor, "b n c_m"],
        z: Float[Tensor, "b n n c_z"],
        mask: Bool[Tensor, "b n"],
        weights: list[BlockWeights] | None = None,
        dropout: tuple[Factors, ...] | None = None,
    ) -> Tracks:
        """Runs all blocks.

        Args:
            m: the single row of the MSA track.
            z: the pair track; without gradients it is overwritten.
            mask: which residues exist; padding does not reach them.
            weights: from `pack`; None: they are packed here.
            dropout: of the sites; None: there is none in our own blocks.
        """
        if self.kernels == "openfold":
            m, z = self._by_definition(m, z, mask)
        else:
            step = self.step if self.training else self.inference_step
            ready = self.packing.nested() if weights is None else weights
            factors = [_NO_DROPOUT] * len(self.blocks) if dropout is None else dropout
            shared = (mask, self.chunk, self.lean)
            m, z = run_blocks(step, ready, factors, m, z, *shared, recompute=self.recompute)
        return Tracks(m, z, self.linear(m), z)

    def dropout_sites(self, residues: int) -> Any:
        """Those of each block, in openfold3's order: the row, four triangle updates.

        A residue's factors are shared by all pairs that it is the second of (AF2 Suppl. 1.11.6).
        openfold3's own forward pass draws for itself.
        """
        c = self.config
        row = Site((residues, c.c_m), c.dropout_msa)
        pairs = Site((1, residues, c.c_z), c.dropout_pair)
        return None if self.kernels == "openfold" else ((row, *(pairs,) * 4),) * c.blocks

    def _by_definition(
        self,
        m: Float[Tensor, "b n c_m"],
        z: Float[Tensor, "b n n c_z"],
        mask: Bool[Tensor, "b n"],
    ) -> tuple[Float[Tensor, "b n c_m"], Float[Tensor, "b n n c_z"]]:
        """By openfold3's own forward pass."""
        pairs = (mask[:, :, None] & mask[:, None, :]).to(z.dtype)
        row, m = mask[:, None].to(m.dtype), m[:, None]
        for block in self.blocks:
            masks = {"msa_mask": row, "pair_mask": pairs, "chunk_size": self.chunk}
            if self.recompute and torch.is_grad_enabled():
                m, z = checkpoint(block, m, z, **masks, use_reentrant=False)
            else:
                m, z = block(m, z, **masks)
        return m[:, 0], z


def fused_block(
    weights: BlockWeights,
    m: Float[Tensor, "b n c_m"],
    z: Float[Tensor, "b n n c_z"],
    factors: Factors,
    mask: Bool[Tensor, "b n"],
    chunk: int | None,
    lean: bool,
) -> tuple[Float[Tensor, "b n c_m"], Float[Tensor, "b n n c_z"]]:
    """A block of openfold3 on a single row: a function of tensors alone, for the compiler.

    Args:
        weights: of the block.
        m: the row of the MSA track.
        z: pair track; where `changes_in_place`, it is overwritten.
        factors: dropout of the row's attention and of the four triangle updates.
        mask: which residues exist.
        chunk: rows of the pair track at a time at most.
        lean: see `update_pairs`.
    """
    of_row, *of_pairs = factors
    row = weights.row
    bias = pair_bias(row.bias, z, mask, chunk, lean)
    projected = F.linear(normalize(m, row.qkvg.weight.dtype, row.norm), *row.qkvg)
    mixed = gated_attention(projected[:, None], bias)[:, 0]
    m = add(m, F.linear(mixed, *row.out), of_row)
    m = m + transition(weights.transition, m)
    z = add_rows(z, _outer_product(weights.outer, m), row_slices(z, z.shape[-1], chunk))
    return m, update_pairs(weights.pairs, z, mask, (*of_pairs, None), chunk, lean=lean)


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
    # A mean over one row, whose number openfold3 and AF2 take as 1 + eps.
    last = packed.affine(outer.linear_out, dtype=dtype)
    mean = 1 / (1 + outer.eps)
    return BlockWeights(
        packed.attention(row.layer_norm_m, row.linear_z, row.mha, dtype, row.layer_norm_z),
        _pack_transition(block.msa_transition, dtype, folded=False),
        OuterProduct(
            packed.affine(outer.linear_1, outer.linear_2, dtype=dtype, norm=outer.layer_norm),
            last.weight.view(-1, outer.c_hidden) * mean,
            last.bias * mean,
        ),
        packed.PairUpdates(
            packed.multiplication(pairs.tri_mul_out, dtype),
            packed.multiplication(pairs.tri_mul_in, dtype),
            _pack_attention(pairs.tri_att_start, dtype),
            _pack_attention(pairs.tri_att_end, dtype),
            _pack_transition(pairs.pair_transition, dtype, folded=True),
        ),
    )


def _pack_attention(layer: Any, dtype: torch.dtype) -> packed.Attention:
    return packed.attention(layer.layer_norm, layer.linear_z, layer.mha, dtype)


def _pack_transition(layer: Any, dtype: torch.dtype, *, folded: bool) -> packed.Transition:
    (up,), down = layer.transition_mlp.layers, layer.transition_mlp.linear_out
    return packed.transition(layer.layer_norm, up[0], down, dtype, folded=folded)


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
        inf=_INF,
        eps=_EPS,
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

    Built anew each time, because openfold3's own entries are shared objects.
    """
    from ml_collections import ConfigDict

    def linear(init: str, bias: bool = True) -> dict:
        return {"bias": bias, "init": init}

    attention = {
        "linear_z": linear("normal", bias=False),
        "mha": {
            "linear_q": linear("glorot", bias=False),
            "linear_k": linear("glorot", bias=False),
            "linear_v": linear("glorot", bias=False),
            "linear_g": linear("gating"),
            "linear_o": linear("final"),
        },
    }
    transition = {"relu": {"layers": linear("relu"), "linear_out": linear("final")}}
    multiplication = {
        "linear_a_p": linear("default"),
        "linear_a_g": linear("gating"),
        "linear_b_p": linear("default"),
        "linear_b_g": linear("gating"),
        "linear_g": linear("gating"),
        "linear_z": linear("final"),
    }
    outer = {
        "linear_1": linear("default"),
        "linear_2": linear("default"),
        "linear_out": linear("final"),
    }
    pair = {"tri_mul": multiplication, "tri_att": attention, "pair_transition": transition}
    return ConfigDict(
        {
            "msa_row_att": attention,
            "msa_transition": transition,
            "opm": outer,
            "pair_block": pair,
            "linear": linear("default"),
        }
    )


@contextmanager
def _quiet_import():
    """Keeps to itself what importing openfold3 warns of, and its change of the warning filters."""
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
