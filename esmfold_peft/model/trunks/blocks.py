"""What both trunks need to run a block: the type of its products, dropout, recomputing."""

import logging
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F  # noqa: N812
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


def shared_dropout(track: Tensor, rate: float, *, dim: int | None = None) -> Tensor | None:
    """Factors of an update of a track, the same along a dimension (AF2 Suppl. 1.11.6).

    Args:
        track: of any shape.
        rate: share of zeros; with 0 there are no factors.
        dim: the dimension; None: each number has its own factor.
    """
    if rate == 0:
        return None
    shape = [1 if axis == dim else size for axis, size in enumerate(track.shape)]
    return F.dropout(track.new_ones(shape, dtype=torch.float32), rate)


def training_step(block: Step, *, compile: bool) -> Step:
    """A block's function for training crops, whose shapes are fixed.

    Args:
        block: the function.
        compile: compile it as one graph.
    """
    if not compile:
        return block
    # It warns of changes in place in what is computed again; compiled code has none.
    logging.getLogger("torch._higher_order_ops.wrap").addFilter(
        lambda record: "context_fn is passed" not in record.getMessage()
    )
    return torch.compile(block, dynamic=False)


def run_blocks(
    step: Step,
    weights: Iterable[object],
    draw: Callable[[Tensor, Tensor], object],
    first: Tensor,
    pair: Tensor,
    *shared: object,
    recompute: bool,
) -> tuple[Tensor, Tensor]:
    """Passes the two tracks through all blocks.

    Args:
        step: a block: called with its weights, the tracks, its dropout and `shared`.
        weights: of each block, in the types of the products: autocast is off inside.
        draw: gives a block's dropout, from the tracks before it.
        first: sequence track.
        pair: pair track.
        shared: what all blocks read.
        recompute: keep only the blocks' inputs for the backward pass, and compute the rest again.
    """
    again = recompute and torch.is_grad_enabled()
    with torch.autocast(pair.device.type, enabled=False):
        for own in weights:
            arguments = (own, first, pair, draw(first, pair), *shared)
            # Re-entrant checkpointing gives silently wrong gradients where an input needs none. A
            # block draws no random numbers, so no generator state has to be kept.
            first, pair = (
                checkpoint(step, *arguments, use_reentrant=False, preserve_rng_state=False)
                if again
                else step(*arguments)
            )
    return first, pair
