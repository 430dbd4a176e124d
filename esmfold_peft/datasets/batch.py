"""Several chains as padded tensors."""

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Chains (or crops of them) padded to one length, with what is known of their structures.

    Attributes:
        ids: name of each chain.
        aatype: 0 to 20 (`protein.residues`), 20 (X) in the padding.
        residue_index: 0-based position in the whole chain, 0 in the padding.
        mask: which residues exist, resolved or not.
        positions: true atom14 coordinates in Å, 0 where absent.
        atom_mask: which atoms are known.
        resolution: Å; NaN if unknown.
        clamped: whether the backbone FAPE of the chain is clamped in this step.
    """

    ids: tuple[str, ...]
    aatype: Int[Tensor, "b n"]
    residue_index: Int[Tensor, "b n"]
    mask: Bool[Tensor, "b n"]
    positions: Float[Tensor, "b n 14 3"]
    atom_mask: Bool[Tensor, "b n 14"]
    resolution: Float[Tensor, "b"]
    clamped: Bool[Tensor, "b"]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch on another device; no dtype changes."""
        moved = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "ids"}
        return replace(
            self, **{name: t.to(device, non_blocking=non_blocking) for name, t in moved.items()}
        )

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory (called by PyTorch's loader)."""
        pinned = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "ids"}
        return replace(self, **{name: t.pin_memory() for name, t in pinned.items()})
