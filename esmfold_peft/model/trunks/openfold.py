"""The OpenFold Evoformer in single-sequence mode: the only place that imports openfold3."""

import os
import warnings
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float
from torch import Tensor, nn

from esmfold_peft.config import EvoformerConfig, Kernels
from esmfold_peft.model.trunks.blocks import rows_at_a_time, run_blocks
from esmfold_peft.model.trunks.tracks import Tracks

_INF = 1e9  # added to masked attention logits; finite in bfloat16
_EPS = 1e-8


KERNEL_FLAGS: dict[Kernels, dict[str, bool]] = {
    "none": {},
    "deepspeed": {"use_deepspeed_evo_attention": True},
    "cuequivariance": {"use_cueq_triangle_kernels": True},
    "triton": {"use_triton_triangle_kernels": True},
}
"""openfold3's names of its kernels."""


class Evoformer(nn.Module):
    """Evoformer blocks on one MSA row (AF2 Suppl. Alg. 6), without column attention.

    One row is what ESMFold has: row attention with pair bias, transition, outer product mean,
    triangle multiplications and triangle attention. Weights are drawn from PyTorch's generator.

    Args:
        config: sizes, dropout and checkpointing.
        chunk: rows of the pair track at a time; None chooses.
        kernels: fused kernels, for a GPU.
        compile: compile the blocks for training.
    """

    def __init__(
        self,
        config: EvoformerConfig,
        *,
        chunk: int | None = None,
        kernels: Kernels = "none",
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.chunk = chunk
        self.flags = KERNEL_FLAGS[kernels]
        self.step = torch.compile(_step, dynamic=False) if compile else _step
        with _quiet_import(), _numpy_seeded_by_torch():
            stack = _stack(config)
        self.blocks: nn.ModuleList = stack.blocks
        self.linear: nn.Module = stack.linear
        # openfold3 names "cuda" in an autocast that it disables: on a CPU every call warns.
        warnings.filterwarnings("ignore", message="CUDA is not available or torch_xla")

    def forward(
        self,
        m: Float[Tensor, "b n c_m"],
        z: Float[Tensor, "b n n c_z"],
        mask: Bool[Tensor, "b n"],
    ) -> Tracks:
        """Runs all blocks.

        Args:
            m: the single row of the MSA track; without gradients it is overwritten.
            z: the pair track; without gradients it is overwritten.
            mask: which residues exist; padding does not reach them.
        """
        pair_mask = (mask[:, :, None] & mask[:, None, :]).to(z.dtype)
        options: dict[str, object] = {**self.flags, "chunk_size": self._chunk(*mask.shape)}
        # Compiled code is made for the fixed shapes of training crops only.
        step = self.step if self.training else _step
        if not torch.is_grad_enabled():
            options["inplace_safe"] = True
        m, z = run_blocks(
            self.blocks,
            step,
            m.unsqueeze(1),
            z,
            mask.unsqueeze(1).to(m.dtype),
            pair_mask,
            options,
            recompute=self.config.checkpoint,
        )
        m = m.squeeze(1)
        return Tracks(m, z, self.linear(m), z)

    def _chunk(self, chains: int, length: int) -> int | None:
        if self.flags and chains > 1:
            return None  # openfold3's chunks give the kernels a bias of a shape that they refuse
        config = self.config
        numbers = max(config.heads_pair * length, config.transition * config.c_z)
        return rows_at_a_time(self.chunk, chains * length, length * numbers)


def _step(
    block: nn.Module,
    m: Float[Tensor, "b 1 n c_m"],
    z: Float[Tensor, "b n n c_z"],
    msa_mask: Float[Tensor, "b 1 n"],
    pair_mask: Float[Tensor, "b n n"],
    options: dict[str, object],
) -> tuple[Float[Tensor, "b 1 n c_m"], Float[Tensor, "b n n c_z"]]:
    return block(m, z, msa_mask=msa_mask, pair_mask=pair_mask, **options)


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
        block.outer_product_mean.__class__ = _outer_product()
        block.pair_stack.__class__ = _pair_block()
        block.pair_stack.tri_att_end.__class__ = _ending_node()
    return stack


@cache
def _outer_product() -> type[nn.Module]:
    """openfold3's outer product mean (AF2 Suppl. Alg. 10) of a single row, never made in full.

    The outer product of two residues has c_opm² numbers, which a matrix turns into c_z. Half of
    that product is done before the residues are paired: c_opm times fewer multiplications, and
    no array of n x n x c_opm². The result differs by rounding.
    """
    from openfold3.core.model.layers.outer_product_mean import OuterProductMean

    class SingleRowOuterProduct(OuterProductMean):
        def forward(self, m: Tensor, mask: Tensor, **chunking: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            row, mask = self.layer_norm(m[:, 0]), mask[:, 0, :, None]
            one, two = self.linear_1(row) * mask, self.linear_2(row) * mask
            # A mean over one row, whose number openfold3 and AF2 take as 1 + eps.
            weight, bias = (
                parameter.to(two.dtype) / (1 + self.eps)
                for parameter in (self.linear_out.weight, self.linear_out.bias)
            )
            half = F.linear(two, weight.view(-1, self.c_hidden))
            pairs = one @ half.view(len(row), -1, self.c_hidden).mT
            return pairs.view(*pairs.shape[:2], -1, self.c_z) + bias

    return SingleRowOuterProduct


@cache
def _pair_block() -> type[nn.Module]:
    """openfold3's pair block, whose triangle multiplications are AlphaFold 2's on every path.

    They never take cuEquivariance's kernel: openfold3 does not pass it the biases that AlphaFold 2
    has. In training they are not added in place: openfold3 then leaves out their dropout, which
    AlphaFold 2 has in recycling passes too. Measured at 256 residues on a CPU, a pass without
    gradients takes as long, and 2 pair tracks more of memory.
    """
    from openfold3.core.model.latent.base_blocks import PairBlock

    class ExactPairBlock(PairBlock):
        def tri_mul_out_in(  # pyright: ignore[reportIncompatibleMethodOverride]
            self,
            *arguments: Any,
            inplace_safe: bool,
            use_cueq_triangle_kernels: bool = False,
            **others: Any,
        ) -> Tensor:
            in_place = inplace_safe and not self.training
            return super().tri_mul_out_in(*arguments, inplace_safe=in_place, **others)

    return ExactPairBlock


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
