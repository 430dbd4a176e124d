"""Whole chains of similar length in one batch."""

from collections.abc import Sequence

import numpy as np


def length_buckets(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Groups chains of similar lengths, shortest first.

    Args:
        lengths: residues of each chain.
        max_tokens: residues in a batch, padding included; a longer chain is alone.

    Returns:
        Batches of places in `lengths`; every place once.
    """
    batches: list[list[int]] = []
    for index in np.argsort(lengths, kind="stable").tolist():
        # The newest chain is the longest of its batch so far.
        if not batches or lengths[index] * (len(batches[-1]) + 1) > max_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


def share_of(batches: list[list[int]], rank: int, world: int) -> list[list[int]]:
    """The batches of one process, as many as any other's.

    Neighbours go to different processes, so that all have equal work at any time. Some of the first
    (shortest) batches are repeated where the number does not divide.

    Args:
        batches: at least one, shortest chains first.
        rank: this process.
        world: processes in all.
    """
    missing = -len(batches) % world
    repeated = [batches[k % len(batches)] for k in range(missing)]
    return (repeated + batches)[rank::world]
