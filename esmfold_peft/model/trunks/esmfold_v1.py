"""The stack of blocks in the released ESMFold (Lin et al. 2023)."""

from typing import Any, cast

from jaxtyping import Bool, Float
from torch import Tensor, nn

from esmfold_peft.config import EsmfoldConfig, ModelConfig
from esmfold_peft.model.heads import AtomPLDDTHead
from esmfold_peft.model.trunks import packed
from esmfold_peft.model.trunks.base import Stack, Tracks
from esmfold_peft.model.trunks.blocks import product_type, run_blocks, shared_dropout, training_step
from esmfold_peft.model.trunks.esmfold_block import BlockWeights, EsmfoldBlock, esmfold_block
from esmfold_peft.model.trunks.triangles import Factors


class EsmfoldStack(Stack):
    """ESMFold's blocks, and the projections to the structure module.

    Args:
        config: sizes, dropout and checkpointing.
        chunk: rows of the pair track at a time; None chooses.
        compile: compile the blocks for training.
    """

    # DISCREPANCY: ESMFold reserves entry 0 for padding, but its code and weights do not shift the
    # amino acids, so that alanine has it.
    first_amino_acid = 0
    mean_distogram = True
    plddt_head = AtomPLDDTHead

    def __init__(
        self, config: EsmfoldConfig, *, chunk: int | None = None, compile: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.chunk = chunk
        self.lean = compile and not config.checkpoint
        self.step = training_step(esmfold_block, compile=compile)
        self.blocks = nn.ModuleList(
            EsmfoldBlock(config.c_s, config.c_z, config.heads, config.heads_pair)
            for _ in range(config.blocks)
        )
        self.to_structure_s = nn.Linear(config.c_s, config.c_structure)
        self.to_structure_z = nn.Linear(config.c_z, config.c_z)
        self.packing = packed.Packing(self._pack)

    @classmethod
    def of(cls, config: ModelConfig, *, compile: bool) -> "EsmfoldStack":
        """Makes the blocks that the settings ask for."""
        return cls(config.esmfold, chunk=config.chunk, compile=compile)

    @staticmethod
    def load_published(model: nn.Module, weights: str) -> None:
        """Fills trunk, structure module and heads with the weights of the released ESMFold."""
        from esmfold_peft.model.esmfold_weights import find_esmfold, load_esmfold

        load_esmfold(cast(Any, model), find_esmfold(weights))

    def pack(self) -> list[BlockWeights]:
        """The blocks' weights for all passes of a step, in autocast's type where it is on."""
        return self.packing.nested()

    def _pack(self) -> list[BlockWeights]:
        dtype = product_type(self.to_structure_z.weight)
        return [cast(EsmfoldBlock, block).pack(dtype) for block in self.blocks]

    def forward(
        self,
        s: Float[Tensor, "b n c_s"],
        z: Float[Tensor, "b n n c_z"],
        mask: Bool[Tensor, "b n"],
        weights: list[BlockWeights] | None = None,
    ) -> Tracks:
        """Runs all blocks.

        Args:
            s: sequence track.
            z: pair track.
            mask: which residues exist; padding does not reach them.
            weights: from `pack`; None: they are packed here.
        """
        weights = self.pack() if weights is None else weights
        # Compiled code is made for the fixed shapes of training crops only.
        step = self.step if self.training else esmfold_block
        shared = (mask, self.chunk, self.lean)
        s, z = run_blocks(
            step, weights, self._draw_factors, s, z, *shared, recompute=self.config.checkpoint
        )
        return Tracks(s, z, self.to_structure_s(s), self.to_structure_z(z))

    def _draw_factors(self, s: Float[Tensor, "b n c_s"], z: Float[Tensor, "b n n c_z"]) -> Factors:
        """Dropout of a block: in pairs twice as much, shared along rows or columns."""
        if not self.training:
            return (None,) * 7
        rate = self.config.dropout
        sequence = [shared_dropout(s, rate) for _ in range(2)]
        # The last of the triangles is for the transposed track.
        triangles = [shared_dropout(z, 2 * rate, dim=dim) for dim in (2, 1, 2, 2)]
        return (*sequence, *triangles, shared_dropout(z, rate))
