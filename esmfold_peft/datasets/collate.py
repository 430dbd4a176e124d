"""Padding chains to one batch."""

import numpy as np
import torch

from esmfold_peft.datasets.batch import Batch
from esmfold_peft.datasets.features import Features
from esmfold_peft.protein.residues import UNKNOWN


def collate(chains: list[Features], clamped: list[bool], length: int | None = None) -> Batch:
    """Pads chains to one length.

    Args:
        chains: at least one.
        clamped: for each chain, whether its backbone FAPE is clamped.
        length: of the batch, no less than that of the longest chain; None takes the latter.
    """
    size, longest = len(chains), length or max(len(chain) for chain in chains)
    aatype = np.full((size, longest), UNKNOWN)
    residue_index = np.zeros((size, longest), dtype=np.int64)
    mask = np.zeros((size, longest), dtype=bool)
    positions = np.zeros((size, longest, 14, 3), dtype=np.float32)
    atom_mask = np.zeros((size, longest, 14), dtype=bool)
    for row, chain in enumerate(chains):
        part = (row, slice(len(chain)))
        aatype[part], residue_index[part], mask[part] = chain.aatype, chain.residue_index, True
        positions[part], atom_mask[part] = chain.positions, chain.atom_mask
    return Batch(
        ids=tuple(chain.id for chain in chains),
        aatype=torch.from_numpy(aatype),
        residue_index=torch.from_numpy(residue_index),
        mask=torch.from_numpy(mask),
        positions=torch.from_numpy(positions),
        atom_mask=torch.from_numpy(atom_mask),
        resolution=torch.tensor([chain.resolution for chain in chains], dtype=torch.float32),
        clamped=torch.tensor(clamped),
    )
