"""What surrounds the Evoformer: inputs from the language model, relative positions, recycling."""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from esmfold_peft.config import TrunkConfig
from esmfold_peft.geometry.distances import pairwise_distances
from esmfold_peft.model.evoformer import Evoformer

_AMINO_ACID_ENTRIES = (
    23  # ESMFold: padding, the twenty and X, and a mask token that it never trained
)


class SequenceEmbedding(nn.Module):
    """Language-model states and amino acids to the first row of the MSA track (ESMFold).

    A learned mix of all hidden layers, LayerNorm, Linear, ReLU, Linear, plus an amino-acid
    embedding.

    Args:
        levels: hidden states of the language model, its input embedding included.
        width: width of the language model.
        c_m: channels of the MSA track.
    """

    def __init__(self, levels: int, width: int, c_m: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(levels))
        self.project = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, c_m), nn.ReLU(), nn.Linear(c_m, c_m)
        )
        self.amino_acid = nn.Embedding(_AMINO_ACID_ENTRIES, c_m, padding_idx=0)

    def forward(
        self,
        hidden: Float[Tensor, "b n l d"],
        aatype: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b n c_m"]:
        """Embeds residues; the padding's rows are finite and meaningless."""
        mixed = torch.einsum("l,bnld->bnd", self.mix.softmax(0).to(hidden.dtype), hidden)
        return self.project(mixed) + self.amino_acid((aatype + 1) * mask)


class RelativePosition(nn.Module):
    """Embedding of clipped sequence distances (AF2 Suppl. Alg. 4; padding-aware as in ESMFold).

    Args:
        clip: distances beyond this share one entry.
        c_z: channels of the pair track.
    """

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

    The bounds 3.375 and 21.375 Å are ESMFold's; AlphaFold 2 has 3.25 and 20.75.
    """

    BINS = 15

    def __init__(self, c_z: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(self.BINS, c_z)
        edges = torch.linspace(3.375, 21.375, self.BINS - 1)
        self.register_buffer("edges", edges, persistent=False)

    def forward(self, cb: Float[Tensor, "b n 3"]) -> Float[Tensor, "b n n c_z"]:
        """Embeds distances between virtual Cβ positions in Å."""
        distance = pairwise_distances(cb, cb)
        return self.embedding(torch.bucketize(distance, cast(Tensor, self.edges)))


@dataclass(frozen=True, eq=False)
class TrunkState:
    """What the trunk hands to the structure module and, detached, to its next pass.

    Attributes:
        m: the MSA track's row.
        z: the pair track.
        s: the single track.
    """

    m: Float[Tensor, "b n c_m"]
    z: Float[Tensor, "b n n c_z"]
    s: Float[Tensor, "b n c_s"]


class Trunk(nn.Module):
    """One pass through the Evoformer with recycled inputs (AF2 Suppl. Alg. 2, lines 7 to 16).

    Args:
        config: sizes of the Evoformer.
        relative_positions: clip of the relative positions.
        levels: hidden states of the language model.
        width: width of the language model.
    """

    def __init__(
        self, config: TrunkConfig, *, relative_positions: int, levels: int, width: int
    ) -> None:
        super().__init__()
        self.sequence_embedding = SequenceEmbedding(levels, width, config.c_m)
        self.relative_position = RelativePosition(relative_positions, config.c_z)
        self.recycle_m = nn.LayerNorm(config.c_m)
        self.recycle_z = nn.LayerNorm(config.c_z)
        self.recycle_distogram = RecyclingDistogram(config.c_z)
        self.evoformer = Evoformer(config)

    def embed(
        self,
        hidden: Float[Tensor, "b n l d"],
        aatype: Int[Tensor, "b n"],
        residue_index: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"],
    ) -> tuple[Float[Tensor, "b n c_m"], Float[Tensor, "b n n c_z"]]:
        """The inputs that every pass shares: row and pair embeddings."""
        m = self.sequence_embedding(hidden, aatype, mask)
        return m, self.relative_position(residue_index, mask)

    def forward(
        self,
        m: Float[Tensor, "b n c_m"],
        z: Float[Tensor, "b n n c_z"],
        mask: Bool[Tensor, "b n"],
        previous: TrunkState | None,
        previous_cb: Float[Tensor, "b n 3"],
    ) -> TrunkState:
        """Runs one pass.

        Args:
            m: row from `embed`.
            z: pairs from `embed`.
            mask: which residues exist.
            previous: the pass before; None for the first, which recycles zeros so that every
                parameter takes part in every pass.
            previous_cb: its virtual Cβ in Å; zeros for the first.
        """
        last_m = torch.zeros_like(m) if previous is None else previous.m
        last_z = torch.zeros_like(z) if previous is None else previous.z
        m = m + self.recycle_m(last_m)
        z = z + self.recycle_z(last_z) + self.recycle_distogram(previous_cb)
        return TrunkState(*self.evoformer(m, z, mask))
