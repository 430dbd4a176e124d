"""Crops of training chains, and which chains and crops make a batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
from torch.utils.data import ConcatDataset, Dataset

from esmfold_peft.datasets.features import Features
from esmfold_peft.datasets.order import Mixture
from esmfold_peft.datasets.streams import CROPS, random_stream


@dataclass(frozen=True, eq=False)
class CroppedChains(Dataset):
    """Training samples: a chain, a crop of it, and whether its FAPE is clamped.

    Every draw depends only on the seed and the sample's number, so that workers, processes and
    resumed runs agree.

    Attributes:
        chains: whole chains of all stores, one store after the other.
        crop: longest stretch of residues.
        clamp_probability: share of samples whose backbone FAPE is clamped.
        seed: of all draws.
    """

    chains: ConcatDataset[Features]
    crop: int
    clamp_probability: float
    seed: int

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Features, bool]:
        """The sample for an index of a chain and a number of the sample in the run."""
        index, number = draw
        rng = random_stream(self.seed, CROPS, number)
        chain = self.chains[index]
        clamped = bool(rng.random() < self.clamp_probability)
        start = crop_start(len(chain), self.crop, clamped, rng)
        return chain.crop(start, self.crop), clamped


def crop_start(length: int, crop: int, clamped: bool, rng: np.random.Generator) -> int:
    """Draws the first residue of a contiguous crop (AF2 Suppl. 1.2.8); short chains stay whole.

    Clamped crops begin anywhere with equal probability, unclamped ones more often near the
    N-terminus, as in AlphaFold 2.
    """
    last = max(length - crop, 0)
    if not clamped:
        last -= int(rng.integers(last + 1))
    return int(rng.integers(last + 1))


@dataclass(frozen=True, eq=False)
class StepBatches:
    """Endless batches of draws for one process, each for an optimizer step.

    All samples of a run are numbered. Batch t of process p has the numbers from
    start + (t·world + p)·chains to start + (t·world + p + 1)·chains - 1. The batches of all
    processes in a step have consecutive numbers. Each number belongs to one process.

    Attributes:
        mixture: which chain each number shows.
        chains: samples of this process in a step.
        rank: this process.
        world: processes in all.
        start: number of the first sample, that is how many samples a resumed run has seen.
    """

    mixture: Mixture
    chains: int
    rank: int
    world: int
    start: int = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yields lists of (index of the chain, number of the sample)."""
        draws = self.mixture.draws(self.start)
        together = self.world * self.chains
        mine = slice(self.rank * self.chains, (self.rank + 1) * self.chains)
        for first in count(self.start, together):
            numbers = range(first, first + together)[mine]
            yield list(zip(list(islice(draws, together))[mine], numbers, strict=True))


def length_buckets(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Groups whole chains of similar lengths, shortest first, into batches of places in `lengths`.

    A batch has at most `max_tokens` residues, padding included; a longer chain is alone.
    """
    batches: list[list[int]] = []
    for index in np.argsort(lengths, kind="stable").tolist():
        # The newest chain is the longest of its batch so far.
        if not batches or lengths[index] * (len(batches[-1]) + 1) > max_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


def share_of(batches: list[list[int]], rank: int, world: int) -> list[list[int]]:
    """The batches of one process: every process has equally many of them, and at least one.

    `batches` has the shortest chains first. Neighbours go to different processes, so that all have
    equal work at any time. Some of the first batches are repeated where the number does not divide.
    """
    missing = -len(batches) % world
    repeated = [batches[k % len(batches)] for k in range(missing)]
    return (repeated + batches)[rank::world]
