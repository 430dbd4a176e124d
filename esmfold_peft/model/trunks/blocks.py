"""What both trunks need to run a block: the type of its products, recomputing."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Step = Callable[..., tuple[Tensor, Tensor]]
"""A block as a function of tensors: its weights, both tracks, its dropout, and what all share."""

NUMBERS_AT_ONCE = 2**28
"""Largest intermediate that inference makes without being asked for chunks: 1 GiB in float32, and
far from the 2^31 at which indices of 32 bits overflow."""


def product_type(parameter: Tensor) -> torch.dtype:
    """The type of matrix products with a parameter: autocast's where it is on, else its own."""
    kind = parameter.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else parameter.dtype


def run_blocks(
    step: Step,
    weights: Iterable[object],
    factors: Iterable[object],
    first: Tensor,
    pair: Tensor,
    *shared: object,
    recompute: bool,
) -> tuple[Tensor, Tensor]:
    """Passes the two tracks through all blocks.

    Args:
        step: a block: called with its weights, the tracks, its dropout and `shared`.
        weights: of each block, in the types of the products: autocast is off inside.
        factors: dropout of each block.
        first: sequence track.
        pair: pair track.
        shared: what all blocks read.
        recompute: keep only the blocks' inputs for the backward pass, and compute the rest again.
    """
    again = recompute and torch.is_grad_enabled()
    with torch.autocast(pair.device.type, enabled=False):
        for own, dropped in zip(weights, factors, strict=True):
            arguments = (own, first, pair, dropped, *shared)
            # Re-entrant checkpointing gives silently wrong gradients where an input needs none. A
            # block draws no random numbers, so no generator state has to be kept.
            first, pair = (
                checkpoint(step, *arguments, use_reentrant=False, preserve_rng_state=False)
                if again
                else step(*arguments)
            )
    return first, pair
