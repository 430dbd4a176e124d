"""Padding chains to one batch."""

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
    # PyTorch's memory is aligned. Where NumPy's lies is chance, on which the last bit of a product
    # can depend: the same run would not always come out the same.
    aatype = torch.full((size, longest), UNKNOWN)
    residue_index = torch.zeros((size, longest), dtype=torch.int64)
    mask = torch.zeros((size, longest), dtype=torch.bool)
    positions = torch.zeros((size, longest, 14, 3))
    atom_mask = torch.zeros((size, longest, 14), dtype=torch.bool)
    for row, chain in enumerate(chains):
        part = (row, slice(len(chain)))
        mask[part] = True
        for tensor, values in (
            (aatype, chain.aatype),
            (residue_index, chain.residue_index),
            (positions, chain.positions),
            (atom_mask, chain.atom_mask),
        ):
            tensor.numpy()[part] = values
    return Batch(
        ids=tuple(chain.id for chain in chains),
        lengths=tuple(len(chain) for chain in chains),
        aatype=aatype,
        residue_index=residue_index,
        mask=mask,
        positions=positions,
        atom_mask=atom_mask,
        resolution=torch.tensor([chain.resolution for chain in chains], dtype=torch.float32),
        clamped=torch.tensor(clamped),
    )
