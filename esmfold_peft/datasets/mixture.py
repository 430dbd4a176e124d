"""Stores mixed by probability: one endless, numbered sequence of samples."""

from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
from jaxtyping import Int64

from esmfold_peft.datasets.order import StoreOrder
from esmfold_peft.datasets.streams import STORES, random_stream

_BLOCK = 4096  # samples whose stores are drawn at a time


class Mixture:
    """For each sample of a run, which chain of which store it shows.

    A sample's store is drawn by the stores' shares, and each store gives its next chain. This is a
    function of the seed and the sample's number alone.

    Args:
        orders: one for each store.
        shares: probability of each store; the sum is 1.
        seed: of the draws of stores.
    """

    def __init__(self, orders: Sequence[StoreOrder], shares: Sequence[float], seed: int) -> None:
        self._orders = orders
        self._bounds = np.cumsum(shares)[:-1]
        self._seed = seed

    def draws(self, start: int) -> "Draws":
        """The samples from number `start` on; millions are skipped in a second."""
        block, rest = divmod(start, _BLOCK)
        given = np.zeros(len(self._orders), dtype=np.int64)
        for earlier in range(block):
            given += np.bincount(self._stores(earlier), minlength=len(given))
        given += np.bincount(self._stores(block)[:rest], minlength=len(given))
        return Draws(
            _Supply(self._stores_from(start)),
            [
                _Supply(order.parts(done))
                for order, done in zip(self._orders, given.tolist(), strict=True)
            ],
            np.cumsum([0, *(len(order) for order in self._orders[:-1])]),
        )

    def _stores_from(self, start: int) -> Iterator[Int64[np.ndarray, "_"]]:
        block, rest = divmod(start, _BLOCK)
        yield self._stores(block)[rest:]
        for later in count(block + 1):
            yield self._stores(later)

    def _stores(self, block: int) -> Int64[np.ndarray, "_"]:
        drawn = random_stream(self._seed, STORES, block).random(_BLOCK)
        return np.searchsorted(self._bounds, drawn, side="right")


class Draws:
    """A place in a mixture, from which samples are taken one after the other.

    Args:
        stores: of each next sample.
        chains: of each store, the places of its next chains.
        first: of each store, the place of its first chain among the chains of all.
    """

    def __init__(
        self, stores: "_Supply", chains: "list[_Supply]", first: Int64[np.ndarray, "stores"]
    ) -> None:
        self._stores = stores
        self._chains = chains
        self._first = first

    def take(self, size: int) -> Int64[np.ndarray, "{size}"]:
        """The next chains: places in the chains of all stores, one store after the other."""
        stores = self._stores.take(size)
        found = np.empty(size, dtype=np.int64)
        for store, (chains, first) in enumerate(zip(self._chains, self._first, strict=True)):
            here = stores == store
            found[here] = first + chains.take(int(here.sum()))
        return found


class _Supply:
    """Takes as many numbers at a time as are asked for from an endless iterator of arrays."""

    def __init__(self, parts: Iterator[Int64[np.ndarray, "_"]]) -> None:
        self._parts = parts
        self._ready = np.empty(0, dtype=np.int64)

    def take(self, size: int) -> Int64[np.ndarray, "{size}"]:
        found = [self._ready[:size]]
        self._ready = self._ready[size:]
        missing = size - len(found[0])
        while missing:
            part = next(self._parts)
            found.append(part[:missing])
            self._ready = part[missing:]
            missing -= len(found[-1])
        return np.concatenate(found)
