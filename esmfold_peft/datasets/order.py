"""In which order the chains of one store come: endless epochs of accepted chains."""

from collections.abc import Iterator
from itertools import count

import numpy as np
from jaxtyping import Float64, Int, Int64

from esmfold_peft.config import ClusterWeight
from esmfold_peft.datasets.streams import random_stream

_BITS = 36
"""Probabilities are multiples of 2 ** -36: sums are exact, on any machine and in any order."""

_SHIFTS_AT_A_TIME = 4096
_SLICE = 4096  # chains shuffled at a time: a tenth of a millisecond, where 600,000 take ten

_SHIFTS, _SHUFFLES = 0, 1


def chain_weights(
    length: Int[np.ndarray, "chains"],
    cluster_size: Int[np.ndarray, "chains"],
    cluster_weight: ClusterWeight,
    length_weight: bool,
) -> Float64[np.ndarray, "chains"]:
    """How readily a chain is accepted (OpenFold, `get_stochastic_train_filter_prob`).

    Args:
        length: residues.
        cluster_size: chains in the chain's cluster, itself included.
        cluster_weight: 1 / size, 1 / sqrt(size), or 1.
        length_weight: whether to multiply by clip(length, 256, 512) / 512.

    Returns:
        Weights above 0, at most 1.
    """
    exponent = {"inverse": -1.0, "inverse_sqrt": -0.5, "none": 0.0}[cluster_weight]
    weights = cluster_size.astype(np.float64) ** exponent
    return weights * np.clip(length, 256, 512) / 512 if length_weight else weights


class StoreOrder:
    """Epochs over a store: each accepts a chain at most once, by weight / largest weight.

    An epoch lays the chains on a line in random order, each as long as its probability, and takes
    those on which a point of a randomly shifted grid of spacing 1 falls, one after the other
    (systematic sampling; Madow 1949). Every chain has exactly its probability, even one alone has
    its epochs, and how many an epoch takes, the sum of probabilities rounded up or down, follows
    from its shift: any number of epochs is skipped without making them.

    Args:
        weights: of the chains; above 0.
        seed: of all draws.
        store: number of the store in the run; stores of one seed are independent.
    """

    # DISCREPANCY: OpenFold tosses a coin for each chain, so that the size of an epoch varies.

    def __init__(self, weights: Float64[np.ndarray, "chains"], seed: int, store: int = 0) -> None:
        scaled = np.rint(weights / weights.max() * 2**_BITS).astype(np.int64)
        self._lengths = np.maximum(scaled, 1)
        self._total = int(self._lengths.sum())
        self._seed = seed
        self._store = store

    def __len__(self) -> int:
        """Number of chains."""
        return len(self._lengths)

    def parts(self, start: int) -> Iterator[Int64[np.ndarray, "_"]]:
        """The endless sequence of chains in parts of any length, also empty ones.

        Args:
            start: how many chains to leave out.

        Yields:
            Places of chains in the store.
        """
        first_block, first, skip = self._place(start)
        for block in count(first_block):
            shifts = self._shifts(block)[first:].tolist()
            for epoch, shift in enumerate(shifts, block * _SHIFTS_AT_A_TIME + first):
                for part in self._epoch(epoch, shift):
                    yield part[skip:]
                    skip = max(skip - len(part), 0)
            first = 0

    def _place(self, start: int) -> tuple[int, int, int]:
        """Block of shifts, epoch in it and place in that, of the chain after `start` others."""
        for block in count():
            ends = np.cumsum((self._total + self._shifts(block)) >> _BITS)
            if start < ends[-1]:
                epoch = int(np.searchsorted(ends, start, side="right"))
                return block, epoch, start - (int(ends[epoch - 1]) if epoch else 0)
            start -= int(ends[-1])
        raise AssertionError("blocks do not end")

    def _shifts(self, block: int) -> Int64[np.ndarray, "_"]:
        rng = random_stream(self._seed, self._store, _SHIFTS, block)
        return rng.integers(2**_BITS, size=_SHIFTS_AT_A_TIME)

    def _epoch(self, epoch: int, shift: int) -> Iterator[Int64[np.ndarray, "_"]]:
        reached = shift
        rng = random_stream(self._seed, self._store, _SHUFFLES, epoch)
        for chains in _shuffled(len(self), rng):
            ends = reached + np.cumsum(self._lengths[chains])
            taken = np.diff(ends >> _BITS, prepend=reached >> _BITS) > 0
            reached = int(ends[-1])
            yield chains[taken]


def _shuffled(size: int, rng: np.random.Generator) -> Iterator[Int64[np.ndarray, "_"]]:
    """The numbers below `size` in random order, a slice at a time.

    Each number draws its slice, and each slice is shuffled when its turn comes: all orders are
    equally likely, and no batch waits for the whole shuffle.
    """
    slices = min(1 << ((size - 1) // _SLICE).bit_length(), 256)
    drawn = np.frombuffer(rng.bytes(size), dtype=np.uint8) & (slices - 1)
    for number in range(slices):
        yield rng.permutation(np.flatnonzero(drawn == number))
