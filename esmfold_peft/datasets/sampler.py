"""Which chain comes when: endless shuffles, shared out to processes."""

from collections.abc import Iterator

import numpy as np


class MicroBatches:
    """Endless micro-batches of draws for one process.

    Samples are numbered over the whole run; number k is chain `permutation(k // chains)[k %
    chains]`. Micro-batch t of process p holds numbers (t·world + p)·micro to (t·world + p +
    1)·micro, so that an optimizer step of the whole world sees consecutive numbers, whatever the
    number of processes.

    Args:
        chains: how many chains there are.
        micro: samples in a micro-batch.
        rank: this process.
        world: processes in all.
        seed: of the shuffles.
    """

    def __init__(self, chains: int, micro: int, rank: int, world: int, seed: int) -> None:
        self.chains = chains
        self.micro = micro
        self.rank = rank
        self.world = world
        self.seed = seed

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yields lists of (index of the chain, number of the sample)."""
        epoch, order = -1, np.empty(0, dtype=np.int64)
        first = self.rank * self.micro
        while True:
            batch = []
            for number in range(first, first + self.micro):
                if number // self.chains != epoch:
                    epoch = number // self.chains
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.chains)
                batch.append((int(order[number % self.chains]), number))
            yield batch
            first += self.world * self.micro
