"""Running a stack of blocks: plainly, recomputed in the backward pass, or compiled."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

NUMBERS_AT_ONCE = 2**28
"""Largest intermediate that a block makes without being asked for chunks: 1 GiB in float32, and far
from the 2^31 at which indices of 32 bits overflow."""


def run_blocks(
    blocks: Iterable[nn.Module],
    step: Callable[..., tuple[Tensor, Tensor]],
    first: Tensor,
    pair: Tensor,
    *shared: object,
    recompute: bool,
) -> tuple[Tensor, Tensor]:
    """Passes the two tracks through all blocks.

    Args:
        blocks: in order.
        step: called with a block, the tracks and `shared`; returns the tracks.
        first: sequence track.
        pair: pair track.
        shared: what all blocks read.
        recompute: keep only the blocks' inputs for the backward pass, and compute the rest again.
    """
    for block in blocks:
        if recompute and torch.is_grad_enabled():
            # Re-entrant checkpointing gives silently wrong gradients where an input needs none.
            result = checkpoint(step, block, first, pair, *shared, use_reentrant=False)
            assert isinstance(result, tuple)
            first, pair = result
        else:
            first, pair = step(block, first, pair, *shared)
    return first, pair


def rows_at_a_time(chunk: int | None, rows: int, numbers_a_row: int) -> int | None:
    """How many rows of the pair track to handle together; None for all of them.

    Args:
        chunk: as set; None chooses.
        rows: rows there are.
        numbers_a_row: size of the largest intermediate of one row.
    """
    if chunk is not None:
        return chunk
    if rows * numbers_a_row <= NUMBERS_AT_ONCE:
        return None
    return max(1, NUMBERS_AT_ONCE // numbers_a_row)
