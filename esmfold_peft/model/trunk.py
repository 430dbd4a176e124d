"""Around the trunk's blocks: inputs from the language model, relative positions, recycling."""

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from esmfold_peft.config import ModelConfig
from esmfold_peft.geometry.distances import pairwise_distances
from esmfold_peft.model.trunks import TRUNKS
from esmfold_peft.model.trunks.base import Tracks

_AMINO_ACID_ENTRIES = 23
"""ESMFold's: padding, the twenty and X, and a mask token that it never trained."""


class Recycled(NamedTuple):
    """What the next pass reads, without gradients: z in the blocks' type, `cb` virtual Cβ in Å."""

    m: Float[Tensor, "b n c_m"]
    z: Float[Tensor, "b n n c_z"]
    cb: Float[Tensor, "b n 3"]


class SequenceEmbedding(nn.Module):
    """Language-model states and amino acids to the sequence track (ESMFold).

    A learned mix of all hidden layers, LayerNorm, Linear, ReLU, Linear, plus an amino-acid
    embedding. Its first amino acid has entry `shift`: 1 leaves entry 0 to padding.
    """

    def __init__(self, levels: int, width: int, c_m: int, *, shift: int = 1) -> None:
        super().__init__()
        self.shift = shift
        self.mix = nn.Parameter(torch.zeros(levels))
        self.project = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, c_m), nn.ReLU(), nn.Linear(c_m, c_m)
        )
        # The embedding of padding is never used; alanine, where it has entry 0, must learn.
        padding = 0 if shift else None
        self.amino_acid = nn.Embedding(_AMINO_ACID_ENTRIES, c_m, padding_idx=padding)

    def forward(
        self,
        hidden: Float[Tensor, "b n l d"],
        aatype: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b n c_m"]:
        """Embeds residues; the padding's rows are finite and meaningless."""
        mixed = torch.einsum("l,bnld->bnd", self.mix.softmax(0).to(hidden.dtype), hidden)
        return self.project(mixed) + self.amino_acid((aatype + self.shift) * mask)


class RelativePosition(nn.Module):
    """Embedding of clipped sequence distances (AF2 Suppl. Alg. 4; padding-aware as in ESMFold)."""

    def __init__(self, clip: int, c_z: int) -> None:
        super().__init__()
        self.clip = clip
        self.embedding = nn.Embedding(2 * clip + 2, c_z)

    def forward(
        self, residue_index: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b n n c_z"]:
        """Embeds index[j] - index[i] at (i, j); entry 0 stands for pairs with padding."""
        offset = (residue_index[:, None, :] - residue_index[:, :, None]).clamp(
            -self.clip, self.clip
        )
        return self.embedding((offset + self.clip + 1) * (mask[:, :, None] & mask[:, None, :]))


class RecyclingDistogram(nn.Module):
    """Embedding of the last pass's virtual Cβ distances in 15 bins (AF2 Suppl. Alg. 32).

    The bounds 3.375 and 21.375 Å are ESMFold's; AlphaFold 2 has 3.25 and 20.75. The first bin has
    all pairs of the first pass; its embedding starts at zero as in ESMFold. AlphaFold 2 has no such
    bin: such pairs get the bias of its linear layer alone.
    """

    BINS = 15

    def __init__(self, c_z: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(self.BINS, c_z)
        self.embedding.weight.detach()[0].zero_()
        edges = torch.linspace(3.375, 21.375, self.BINS - 1)
        self.register_buffer("edges", edges, persistent=False)

    def forward(self, cb: Float[Tensor, "b n 3"]) -> Float[Tensor, "b n n c_z"]:
        """Embeds distances between virtual Cβ positions in Å."""
        distance = pairwise_distances(cb, cb)
        return self.embedding(torch.bucketize(distance, cast(Tensor, self.edges)))


class Trunk(nn.Module):
    """One pass through the trunk's blocks with recycled inputs (AF2 Suppl. Alg. 2, lines 7 to 16).

    Args:
        config: the blocks and their sizes.
        levels: hidden states of the language model, its input embedding included.
        width: width of the language model.
        compile: compile the blocks for training.
    """

    def __init__(self, config: ModelConfig, *, levels: int, width: int, compile: bool) -> None:
        super().__init__()
        kind, (c_m, c_z, _) = TRUNKS[config.trunk], config.section.widths
        self.sequence_embedding = SequenceEmbedding(levels, width, c_m, shift=kind.first_amino_acid)
        self.relative_position = RelativePosition(config.relative_positions, c_z)
        self.recycle_m = nn.LayerNorm(c_m)
        self.recycle_z = nn.LayerNorm(c_z)
        self.recycle_distogram = RecyclingDistogram(c_z)
        self.stack = kind(config, compile=compile)
        rounded = config.pair_track == "bf16" and config.kernels == "fused"
        self.pair_type = torch.bfloat16 if rounded else torch.float32

    def forward(
        self,
        m: Float[Tensor, "b n c_m"],
        residue_index: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"],
        previous: Recycled | None,
        packed: Any,
        dropout: Any,
    ) -> Tracks:
        """Runs one pass.

        Args:
            m: sequence track from `sequence_embedding`.
            residue_index: positions in the chain.
            mask: which residues exist.
            previous: of the pass before; None for the first, which recycles zeros so that every
                parameter takes part in every pass.
            packed: from `Stack.pack`.
            dropout: of the blocks, for `Stack.dropout_sites`.
        """
        z = self.relative_position(residue_index, mask)
        last = _nothing(m, z) if previous is None else previous
        m = m + self.recycle_m(last.m.float())
        z = z + self.recycle_z(last.z.float()) + self.recycle_distogram(last.cb)
        if torch.is_autocast_enabled(z.device.type):
            z = z.to(self.pair_type)
        return self.stack(m, z, mask, packed, dropout)


def _nothing(m: Float[Tensor, "b n c_m"], z: Float[Tensor, "b n n c_z"]) -> Recycled:
    """What the first pass recycles: one residue, which stands for all of every chain."""
    return Recycled(
        m.new_zeros(1, 1, m.shape[-1]), z.new_zeros(1, 1, 1, z.shape[-1]), m.new_zeros(1, 1, 3)
    )
