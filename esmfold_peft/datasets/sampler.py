"""Which samples a process sees: shards of one sequence."""

from collections.abc import Iterator
from itertools import count

from esmfold_peft.datasets.mixture import Mixture


class StepBatches:
    """Endless batches of draws for one process, each for an optimizer step.

    Samples are numbered over the whole run. Batch t of process p holds numbers start +
    (t·world + p)·chains and the next chains - 1, so that an optimizer step of the whole world sees
    consecutive numbers, whatever the number of processes, and no process sees another's.

    Args:
        mixture: which chain each number shows.
        chains: samples of this process in a step.
        rank: this process.
        world: processes in all.
        start: number of the first sample: what a resumed run has seen.
    """

    def __init__(
        self, mixture: Mixture, chains: int, rank: int, world: int, start: int = 0
    ) -> None:
        self.mixture = mixture
        self.chains = chains
        self.rank = rank
        self.world = world
        self.start = start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yields lists of (index of the chain, number of the sample)."""
        draws = self.mixture.draws(self.start)
        together = self.world * self.chains
        mine = slice(self.rank * self.chains, (self.rank + 1) * self.chains)
        for first in count(self.start, together):
            numbers = range(first, first + together)[mine]
            yield list(zip(draws.take(together)[mine].tolist(), numbers, strict=True))
