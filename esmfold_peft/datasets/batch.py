"""Several chains as padded tensors, moved and cut as one."""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from esmfold_peft.datasets.features import Features
from esmfold_peft.protein.residues import UNKNOWN

P = TypeVar("P", bound="Padded")


class Padded:
    """Tensors of several chains: their first axis is the chain, their second one is padded."""

    def to(self: P, device: torch.device | str, non_blocking: bool = False) -> P:
        """The same on another device; no dtype changes."""
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: P) -> P:
        """The same in page-locked memory (called by PyTorch's loader)."""
        return map_tensors(self, Tensor.pin_memory)

    def rows(self: P, part: slice, length: int) -> P:
        """Views of some chains, cut to `length` residues: that of the longest of them, or more."""
        return map_tensors(self, lambda t: t[part] if t.ndim == 1 else t[part, :length])


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Applies `change` to a tensor, or to all of a dataclass and of the dataclasses in it."""
    if isinstance(value, Tensor):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: map_tensors(getattr(value, f.name), change) for f in fields(value)}
        return replace(value, **parts)
    return value


@dataclass(frozen=True, eq=False)
class Batch(Padded):
    """Chains (or crops of them) padded to one length, with the known parts of their structures.

    Attributes:
        ids: name of each chain.
        lengths: residues of each chain, known without waiting for the device.
        aatype: 0 to 20 (`protein.residues`), 20 (X) in the padding.
        residue_index: 0-based position in the whole chain, 0 in the padding.
        mask: which residues exist, resolved or not.
        positions: true atom14 coordinates in Å, 0 where absent.
        atom_mask: which atoms are known.
        resolution: Å; NaN if unknown.
        clamped: whether the backbone FAPE of the chain is clamped in this step.
    """

    ids: tuple[str, ...]
    lengths: tuple[int, ...]
    aatype: Int[Tensor, "b n"]
    residue_index: Int[Tensor, "b n"]
    mask: Bool[Tensor, "b n"]
    positions: Float[Tensor, "b n 14 3"]
    atom_mask: Bool[Tensor, "b n 14"]
    resolution: Float[Tensor, "b"]
    clamped: Bool[Tensor, "b"]

    def rows(self, part: slice, length: int) -> "Batch":
        """Some of the chains, their tensors as views (see `Padded.rows`)."""
        return replace(super().rows(part, length), ids=self.ids[part], lengths=self.lengths[part])


def collate(chains: list[Features], clamped: list[bool], length: int | None = None) -> Batch:
    """Pads at least one chain to one length.

    Args:
        chains: of the batch.
        clamped: for each chain, whether its backbone FAPE is clamped.
        length: of the batch, at least that of the longest chain, which None takes.
    """
    lengths = tuple(len(chain) for chain in chains)
    shape = len(chains), length or max(lengths)
    # PyTorch aligns its memory; NumPy's alignment is chance, and can change the last bit of a
    # product: the same run would not always give the same result.
    aatype = torch.full(shape, UNKNOWN)
    residue_index = torch.zeros(shape, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.bool)
    positions = torch.zeros((*shape, 14, 3))
    atom_mask = torch.zeros((*shape, 14), dtype=torch.bool)
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
        lengths=lengths,
        aatype=aatype,
        residue_index=residue_index,
        mask=mask,
        positions=positions,
        atom_mask=atom_mask,
        resolution=torch.tensor([chain.resolution for chain in chains], dtype=torch.float32),
        clamped=torch.tensor(clamped),
    )
