"""Folding many chains without gradients, and turning the result into structures."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from esmfold_peft.adapters.bank import AdapterChoice
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.datasets.buckets import length_buckets
from esmfold_peft.datasets.collate import collate
from esmfold_peft.datasets.features import Features
from esmfold_peft.geometry.atoms import atom14_to_atom37, atom14_to_atom37_mask
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.protein.residues import ATOM37_INDEX, encode
from esmfold_peft.protein.structure import ProteinStructure


@dataclass(frozen=True, eq=False)
class Folded:
    """The prediction of one chain, its padding removed.

    Attributes:
        index: place of the chain in the list that was given.
        positions: atom14 coordinates in Å.
        atom_plddt: expected lDDT of each atom, 0 to 1.
    """

    index: int
    positions: Float32[Tensor, "n 14 3"]
    atom_plddt: Float32[Tensor, "n 37"]

    @property
    def plddt(self) -> Float32[Tensor, "n"]:
        """Expected lDDT of each residue's Cα, 0 to 1."""
        return self.atom_plddt[:, ATOM37_INDEX["CA"]]


def fold(
    model: FoldingModel,
    chains: list[Features],
    *,
    recycles: int,
    max_tokens: int,
    choice: AdapterChoice | None = None,
) -> Iterator[Folded]:
    """Folds chains in batches of similar length, shortest first.

    Args:
        model: in evaluation mode, on the device to use.
        chains: residues and numbers are used; coordinates are not looked at.
        recycles: passes after the first.
        max_tokens: residues in a batch, padding included; a longer chain is folded alone.
        choice: an adapter for each chain, instead of the model's own for all.

    Yields:
        Every chain once, in the order of their lengths.
    """
    device = next(model.parameters()).device
    for indices in length_buckets([len(chain) for chain in chains], max_tokens):
        batch = collate([chains[i] for i in indices], [False] * len(indices)).to(device)
        own = (
            None if choice is None else AdapterChoice(choice.bank, choice.which[indices].to(device))
        )
        yield from _fold_batch(model, batch, indices, recycles, own)


def sequence_features(name: str, sequence: str) -> Features:
    """Features of a sequence without a structure."""
    n = len(sequence)
    return Features(
        id=name,
        aatype=encode(sequence),
        residue_index=np.arange(n),
        positions=np.zeros((n, 14, 3), dtype=np.float32),
        atom_mask=np.zeros((n, 14), dtype=bool),
        resolution=float("nan"),
    )


def to_structure(name: str, sequence: str, folded: Folded) -> ProteinStructure:
    """A prediction as a structure with pLDDT, 0 to 100, as B-factors.

    Args:
        name: id of the structure.
        sequence: the one-letter codes that were folded.
        folded: the prediction of them.
    """
    n, aatype = len(sequence), torch.from_numpy(encode(sequence))[None]
    positions = atom14_to_atom37(aatype, folded.positions[None])[0].numpy()
    mask = atom14_to_atom37_mask(aatype, torch.ones(1, n, 14, dtype=torch.bool))[0].numpy()
    return ProteinStructure(
        id=name,
        sequence=sequence,
        residue_index=np.arange(n, dtype=np.int32),
        residue_names=("",) * n,
        positions=positions,
        atom_mask=mask,
        b_factors=(mask * 100 * folded.atom_plddt.numpy()).astype(np.float32),
    )


@torch.inference_mode()
def _fold_batch(
    model: FoldingModel,
    batch: Batch,
    indices: list[int],
    recycles: int,
    choice: AdapterChoice | None,
) -> list[Folded]:
    output = model(
        batch.aatype, batch.residue_index, batch.mask, recycles, choice, heads=("plddt",)
    )
    lengths = batch.mask.sum(-1).tolist()
    positions, plddt = output.positions.cpu(), output.atom_plddt.cpu()
    return [
        Folded(index, positions[row, :n], plddt[row, :n])
        for row, (index, n) in enumerate(zip(indices, lengths, strict=True))
    ]
