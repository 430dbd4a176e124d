"""The stack of blocks in the released ESMFold (Lin et al. 2023)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from esmfold_peft.config import EsmfoldConfig
from esmfold_peft.model.trunks.blocks import run_blocks
from esmfold_peft.model.trunks.esmfold_block import EsmfoldBlock
from esmfold_peft.model.trunks.tracks import Tracks


class EsmfoldStack(nn.Module):
    """ESMFold's blocks, and the projections to the structure module.

    Args:
        config: sizes, dropout and checkpointing.
        chunk: rows of the pair track at a time; None chooses.
        compile: compile the blocks for training.
    """

    def __init__(
        self, config: EsmfoldConfig, *, chunk: int | None = None, compile: bool = False
    ) -> None:
        super().__init__()
        self.checkpoint = config.checkpoint
        self.chunk = chunk
        self.step = torch.compile(_step, dynamic=False) if compile else _step
        self.blocks = nn.ModuleList(
            EsmfoldBlock(config.c_s, config.c_z, config.heads, config.heads_pair, config.dropout)
            for _ in range(config.blocks)
        )
        self.to_structure_s = nn.Linear(config.c_s, config.c_structure)
        self.to_structure_z = nn.Linear(config.c_z, config.c_z)

    def forward(
        self,
        s: Float[Tensor, "b n c_s"],
        z: Float[Tensor, "b n n c_z"],
        mask: Bool[Tensor, "b n"],
    ) -> Tracks:
        """Runs all blocks.

        Args:
            s: sequence track.
            z: pair track.
            mask: which residues exist; padding does not reach them.
        """
        # Compiled code is made for the fixed shapes of training crops only.
        step = self.step if self.training else _step
        s, z = run_blocks(self.blocks, step, s, z, mask, self.chunk, recompute=self.checkpoint)
        return Tracks(s, z, self.to_structure_s(s), self.to_structure_z(z))


def _step(
    block: nn.Module,
    s: Float[Tensor, "b n c_s"],
    z: Float[Tensor, "b n n c_z"],
    mask: Bool[Tensor, "b n"],
    chunk: int | None,
) -> tuple[Float[Tensor, "b n c_s"], Float[Tensor, "b n n c_z"]]:
    return block(s, z, mask, chunk=chunk)
