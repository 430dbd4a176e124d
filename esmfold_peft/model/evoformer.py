"""The OpenFold Evoformer in single-sequence mode: the only place that imports openfold3."""

import os
import warnings
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from esmfold_peft.config import TrunkConfig

_INF = 1e9  # added to masked attention logits; finite in bfloat16
_EPS = 1e-8


class Evoformer(nn.Module):
    """Evoformer blocks on one MSA row (AF2 Suppl. Alg. 6), without column attention.

    One row is what ESMFold has: row attention with pair bias, transition, outer product mean,
    triangle multiplications and triangle attention. Weights are drawn from PyTorch's generator.

    Args:
        config: sizes, dropout and checkpointing.
    """

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        with _quiet_import(), _numpy_seeded_by_torch():
            self.stack = _stack(config)
        # openfold3 names "cuda" in an autocast that it disables: on a CPU every call warns.
        warnings.filterwarnings("ignore", message="CUDA is not available or torch_xla")

    def forward(
        self,
        m: Float[Tensor, "b n c_m"],
        z: Float[Tensor, "b n n c_z"],
        mask: Bool[Tensor, "b n"],
    ) -> tuple[Float[Tensor, "b n c_m"], Float[Tensor, "b n n c_z"], Float[Tensor, "b n c_s"]]:
        """Runs all blocks.

        Args:
            m: the single row of the MSA track.
            z: the pair track.
            mask: which residues exist; padding does not reach them.

        Returns:
            The row, the pair track, and the single track projected from the row.
        """
        pair_mask = (mask[:, :, None] & mask[:, None, :]).to(z.dtype)
        m, z, s = self.stack(
            m.unsqueeze(1), z, msa_mask=mask.unsqueeze(1).to(m.dtype), pair_mask=pair_mask
        )
        return m.squeeze(1), z, s


def _stack(config: TrunkConfig) -> nn.Module:
    from openfold3.core.model.latent.evoformer import EvoformerStack

    return EvoformerStack(
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
        blocks_per_ckpt=1 if config.checkpoint else None,
        # The default (reentrant) gives silently wrong gradients where an input needs none.
        use_reentrant=False,
        inf=_INF,
        eps=_EPS,
        linear_init_params=_alphafold2_init(),
    )


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
