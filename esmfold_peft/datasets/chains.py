"""Training samples: crops of the chains of stores."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from torch.utils.data import Dataset

from esmfold_peft.datasets.crop import crop_start
from esmfold_peft.datasets.features import Features
from esmfold_peft.datasets.streams import CROPS, random_stream


class JoinedChains(Sequence[Features]):
    """Several sequences of chains as one, the first one's chains first.

    Args:
        parts: none of them empty.
    """

    def __init__(self, parts: Sequence[Sequence[Features]]) -> None:
        self.parts = parts
        self._ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        """Number of chains."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> Features:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One chain."""
        part = bisect_right(self._ends, index)
        return self.parts[part][index - (self._ends[part - 1] if part else 0)]


class CroppedChains(Dataset):
    """Training samples: a chain, a crop of it, and whether its FAPE is clamped.

    Every draw depends only on the seed and the sample's number, so that workers, processes and
    resumed runs agree.

    Args:
        chains: whole chains.
        crop: longest stretch of residues.
        clamp_probability: share of samples whose backbone FAPE is clamped.
        seed: of all draws.
    """

    def __init__(
        self, chains: Sequence[Features], crop: int, clamp_probability: float, seed: int
    ) -> None:
        self.chains = chains
        self.crop = crop
        self.clamp_probability = clamp_probability
        self.seed = seed

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Features, bool]:
        """One sample.

        Args:
            draw: index of the chain, and number of the sample in the run.
        """
        index, number = draw
        rng = random_stream(self.seed, CROPS, number)
        chain = self.chains[index]
        clamped = bool(rng.random() < self.clamp_probability)
        start = crop_start(len(chain), self.crop, clamped, rng)
        return chain.crop(start, self.crop), clamped
