"""Which chain a sample of a run shows: endless epochs over each store, mixed by probability."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, count, islice
from typing import Any

import numpy as np
from jaxtyping import Float64, Int, Int64

from esmfold_peft.config import ClusterWeight, DataConfig
from esmfold_peft.datasets.manifest import manifest_hash
from esmfold_peft.datasets.streams import STORES, random_stream
from esmfold_peft.errors import UserError

_BITS = 36
"""Probabilities are multiples of 2 ** -36: sums are exact, on any machine and in any order."""

_SHIFTS_AT_A_TIME = 4096
_SLICE = 4096  # chains shuffled at a time: a tenth of a millisecond, where 600,000 take ten
_BLOCK = 4096  # samples whose stores are drawn at a time

_SHIFTS, _SHUFFLES = 0, 1


def chain_weights(
    length: Int[np.ndarray, "chains"],
    cluster_size: Int[np.ndarray, "chains"],
    cluster_weight: ClusterWeight,
    length_weight: bool,
) -> Float64[np.ndarray, "chains"]:
    """How readily a chain is accepted (OpenFold, `get_stochastic_train_filter_prob`): 0 < w <= 1.

    The weight is 1 / size, 1 / sqrt(size), or 1, with the number of chains in the chain's cluster,
    itself included; `length_weight` multiplies by clip(length, 256, 512) / 512.
    """
    exponent = {"inverse": -1.0, "inverse_sqrt": -0.5, "none": 0.0}[cluster_weight]
    weights = cluster_size.astype(np.float64) ** exponent
    return weights * np.clip(length, 256, 512) / 512 if length_weight else weights


class StoreOrder:
    """Epochs over a store: each accepts a chain at most once, by weight / largest weight.

    An epoch lays the chains on a line in random order, each as long as its probability, and takes
    those on which a point of a randomly shifted grid of spacing 1 falls, one after the other
    (systematic sampling; Madow 1949). Every chain has exactly its probability, also in a store of
    one chain. The number of chains in an epoch is the sum of probabilities rounded up or down, and
    follows from the shift: any number of epochs can be skipped without making them.

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
        """The endless sequence of places in the store, in parts of any length, also empty ones.

        The first `start` chains are skipped.
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
        """Block of shifts, epoch in it, and place in that, of the chain after `start` others."""
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


class Mixture:
    """For each sample of a run, which chain of which store it shows.

    A sample's store is drawn by the stores' shares (their sum is 1), and each store gives its next
    chain. This is a function of the seed and the sample's number alone.
    """

    def __init__(self, orders: Sequence[StoreOrder], shares: Sequence[float], seed: int) -> None:
        self._orders = orders
        self._bounds = np.cumsum(shares)[:-1]
        self._seed = seed

    def draws(self, start: int) -> Iterator[int]:
        """The samples from number `start` on; millions are skipped in a second.

        Yields places in the chains of all stores, one store after the other.
        """
        block, rest = divmod(start, _BLOCK)
        given = np.zeros(len(self._orders), dtype=np.int64)
        for earlier in range(block):
            given += np.bincount(self._stores(earlier), minlength=len(given))
        given += np.bincount(self._stores(block)[:rest], minlength=len(given))
        chains = [_chained(o.parts(n)) for o, n in zip(self._orders, given.tolist(), strict=True)]
        first = list(accumulate((len(order) for order in self._orders), initial=0))
        stores = _chained(map(self._stores, count(block)))
        for store in islice(stores, rest, None):
            yield first[store] + next(chains[store])

    def _stores(self, block: int) -> Int64[np.ndarray, "_"]:
        drawn = random_stream(self._seed, STORES, block).random(_BLOCK)
        return np.searchsorted(self._bounds, drawn, side="right")


def _chained(parts: Iterable[Int64[np.ndarray, "_"]]) -> Iterator[int]:
    return chain.from_iterable(part.tolist() for part in parts)


def order_of(data: DataConfig, seed: int) -> dict[str, Any]:
    """All that decides which chain a sample's number shows, by the names of the settings."""
    hashes = [manifest_hash(path)[:16] for path, _ in data.shares]
    mixed = [
        f"{share:g} of {name}" for share, name in zip(data.mix.values(), hashes[1:], strict=True)
    ]
    return {
        "seed": seed,
        "data.train": f"manifest {hashes[0]}",
        "data.mix": ", ".join(mixed) or "none",
        "data.cluster_weight": data.cluster_weight,
        "data.length_weight": data.length_weight,
    }


def require_order(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Refuses a checkpoint whose run had another order (`order_of`) than this run.

    Raises:
        UserError: they differ; names each setting that does.
    """
    differing = [name for name in expected if found.get(name) != expected[name]]
    if differing:
        changes = "; ".join(f"{n}: {expected[n]} instead of {found.get(n)}" for n in differing)
        raise UserError(
            f"the checkpoint belongs to another sequence of samples: {changes}; change these back"
        )
