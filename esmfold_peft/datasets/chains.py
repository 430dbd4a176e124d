"""Chains of a manifest as a PyTorch data set."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from esmfold_peft.datasets.crop import crop_start
from esmfold_peft.datasets.features import Features, features
from esmfold_peft.datasets.manifest import manifest_path, read_manifest
from esmfold_peft.errors import UserError
from esmfold_peft.protein.read import read_structure
from esmfold_peft.protein.structure import ProteinStructure

_CACHED_CHAINS = 1024  # 0.2 MB each at 256 residues: small sets are parsed once


class ChainDataset(Dataset):
    """Whole chains, in the manifest's order.

    Args:
        path: a manifest or its folder.

    Raises:
        UserError: there is no manifest, it is broken, or a file that it lists is missing.
    """

    def __init__(self, path: Path) -> None:
        self.manifest = manifest_path(path)
        self.entries = read_manifest(self.manifest)
        for entry in self.entries:
            if not (self.manifest.parent / entry.file).is_file():
                raise UserError(
                    f"{self.manifest}: the file of {entry.id}, {entry.file}, is missing"
                )
        self._features = lru_cache(maxsize=_CACHED_CHAINS)(self._load)

    def __len__(self) -> int:
        """Number of chains."""
        return len(self.entries)

    def __getitem__(self, index: int) -> Features:
        """The features of one chain."""
        return self._features(index)

    def structure(self, index: int) -> ProteinStructure:
        """Reads one chain from its file."""
        entry = self.entries[index]
        return read_structure(self.manifest.parent / entry.file, chain=entry.chain)

    def _load(self, index: int) -> Features:
        return features(self.structure(index))


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

    def __init__(self, chains: ChainDataset, crop: int, clamp_probability: float, seed: int):
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
        rng = np.random.default_rng((self.seed, number))
        chain = self.chains[index]
        clamped = bool(rng.random() < self.clamp_probability)
        start = crop_start(len(chain), self.crop, clamped, rng)
        return chain.crop(start, self.crop), clamped
