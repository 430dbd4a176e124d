"""A stack whose block is one function of tensors: packing, compiling, recomputing."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from esmfold_peft.config import ModelConfig
from esmfold_peft.model.compiling import compiled_for_inference, compiled_for_training
from esmfold_peft.model.dropout import Factors
from esmfold_peft.model.trunks.attention import NUMBERS_AT_ONCE
from esmfold_peft.model.trunks.base import Stack, Tracks
from esmfold_peft.model.trunks.packing import Packing

Block = Callable[..., tuple[Tensor, Tensor]]
"""A function of tensors alone, for the compiler: its packed weights, both tracks, its dropout, the
mask, the chunk and `selective` (`triangles.update_pairs`) give both tracks."""


class BlockStack(Stack):
    """Blocks that one function runs.

    Args:
        config: the model's settings.
        block: runs a block.
        dropouts: dropout sites of a block.
        compile: compile the blocks for training.

    Attributes:
        blocks: a module for each block, made by the subclass.
        training_block: runs a block in training.
        inference_block: runs a block otherwise.
    """

    blocks: nn.ModuleList

    def __init__(
        self, config: ModelConfig, block: Block, *, dropouts: int, compile: bool = False
    ) -> None:
        super().__init__(config, compile=compile)
        self.training_block = compiled_for_training(block) if compile else block
        self.inference_block = block
        self.no_dropout: Factors = (None,) * dropouts
        self.packing = Packing(self.packed_blocks)

    @abstractmethod
    def packed_blocks(self) -> list[Any]:
        """The weights of each block, in autocast's type where it is on."""

    @abstractmethod
    def tracks(self, m: Float[Tensor, "b n c_m"], z: Float[Tensor, "b n n c_z"]) -> Tracks:
        """All tracks after the last block."""

    def pack(self) -> Any:
        """The blocks' weights for all passes of a step, in autocast's type where it is on."""
        return self.packing.nested()

    @property
    def selective(self) -> bool:
        """Whether parts of a block are recomputed, which is cheap in compiled code."""
        return self.compiled and not self.recompute

    def compile_for_inference(self) -> None:
        """Compiles the blocks for chains of all lengths that need no pieces of rows."""
        plain = self.inference_block
        compiled = compiled_for_inference(plain)

        def block(*given: Any) -> tuple[Tensor, Tensor]:
            _, _, z, _, _, chunk, _ = given
            whole = chunk is None and z.numel() <= NUMBERS_AT_ONCE
            return (compiled if whole else plain)(*given)

        self.inference_block = block

    def forward(
        self,
        m: Float[Tensor, "b n c_m"],
        z: Float[Tensor, "b n n c_z"],
        mask: Bool[Tensor, "b n"],
        packed: list[Any] | None = None,
        dropout: tuple[Factors, ...] | None = None,
    ) -> Tracks:
        """Runs all blocks; packs the weights if they are not given."""
        ready = self.pack() if packed is None else packed
        block = self.training_block if self.training else self.inference_block
        factors = [self.no_dropout] * len(self.blocks) if dropout is None else dropout
        shared = (mask, self.chunk, self.selective)
        m, z = run_blocks(block, ready, factors, m, z, *shared, recompute=self.recompute)
        return self.tracks(m, z)


def run_blocks(
    block: Block,
    packed: Iterable[object],
    factors: Iterable[object],
    first: Tensor,
    pair: Tensor,
    *shared: object,
    recompute: bool,
) -> tuple[Tensor, Tensor]:
    """Passes the sequence track and the pair track through all blocks, with autocast off.

    Args:
        block: runs a block.
        packed: weights of each block, in the types of the products.
        factors: dropout of each block.
        first: sequence track.
        pair: pair track.
        shared: further arguments of all blocks.
        recompute: keep only the blocks' inputs for the backward pass, and compute the rest again.
    """
    again = recompute and torch.is_grad_enabled()
    with torch.autocast(pair.device.type, enabled=False):
        for own, dropped in zip(packed, factors, strict=True):
            arguments = (own, first, pair, dropped, *shared)
            # Re-entrant checkpointing gives silently wrong gradients where an input needs none. A
            # block draws no random numbers, so no generator state has to be kept.
            first, pair = (
                checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
                if again
                else block(*arguments)
            )
    return first, pair
