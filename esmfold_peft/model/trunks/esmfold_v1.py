"""The stack of blocks in the released ESMFold (Lin et al. 2023)."""

from typing import Any, cast

from jaxtyping import Bool, Float
from torch import Tensor, nn

from esmfold_peft.config import EsmfoldConfig, ModelConfig
from esmfold_peft.model.compiling import compiled_for_training
from esmfold_peft.model.dropout import Factors, Site
from esmfold_peft.model.heads import AtomPLDDTHead
from esmfold_peft.model.trunks import packed
from esmfold_peft.model.trunks.base import Stack, Tracks
from esmfold_peft.model.trunks.blocks import product_type, run_blocks
from esmfold_peft.model.trunks.esmfold_block import BlockWeights, EsmfoldBlock, esmfold_block

_NO_DROPOUT: Factors = (None,) * 7


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
        self.recompute, self.compiled = config.checkpoint is not False, compile
        self.step = compiled_for_training(esmfold_block) if compile else esmfold_block
        self.inference_step = esmfold_block
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
        dropout: tuple[Factors, ...] | None = None,
    ) -> Tracks:
        """Runs all blocks.

        Args:
            s: sequence track.
            z: pair track.
            mask: which residues exist; padding does not reach them.
            weights: from `pack`; None: they are packed here.
            dropout: of the sites; None: there is none.
        """
        weights = self.pack() if weights is None else weights
        step = self.step if self.training else self.inference_step
        factors = [_NO_DROPOUT] * len(self.blocks) if dropout is None else dropout
        shared = (mask, self.chunk, self.lean)
        s, z = run_blocks(step, weights, factors, s, z, *shared, recompute=self.recompute)
        return Tracks(s, z, self.to_structure_s(s), self.to_structure_z(z))

    def dropout_sites(self, residues: int) -> Any:
        """Those of each block: in pairs twice as much, shared along rows or columns."""
        n, c = residues, self.config
        sequence = Site((n, c.c_s), c.dropout)
        rows = Site((1, n, c.c_z), 2 * c.dropout)
        columns = Site((n, 1, c.c_z), 2 * c.dropout)
        # The last of the triangles is for the transposed track.
        triangles = (columns, rows, columns, columns)
        block = (sequence, sequence, *triangles, Site((n, n, c.c_z), c.dropout))
        return (block,) * len(self.blocks)
