"""Many adapters at once: each sequence of a batch uses its own (LoRTA appendix G).

Adapters of one kind stay in memory as they are on disk, their factors stacked; a batch folds those
of its sequences in one go. The language model under them is shared, and computed once.
"""

from copy import deepcopy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.func import functional_call

from esmfold_peft.adapters.base import Adaptation, AdaptedModel, Adapter
from esmfold_peft.adapters.io import read_adapter, require_base
from esmfold_peft.config import AdapterConfig
from esmfold_peft.errors import UserError

_TRAINING_ONLY = {"init", "freeze", "lr_factors"}


class AdapterBank(nn.Module):
    """Adapters that differ in the values of their factors only.

    Args:
        adapters: by name, settled on one language model.

    Attributes:
        names: of the adapters, in the order of their indices.

    Raises:
        UserError: two adapters differ in a setting or in their language model's sizes.
    """

    def __init__(self, adapters: dict[str, Adapter]) -> None:
        super().__init__()
        self.names = tuple(adapters)
        members = list(adapters.values())
        for name, adapter in adapters.items():
            _require_alike(self.names[0], members[0], name, adapter)
        # A list hides the pattern from `parameters`: it has shapes, and no numbers of its own.
        self._pattern = [deepcopy(members[0]).to("meta")]
        # What all have in common, such as VeRA's random matrices of one seed, is kept once.
        self._common: set[str] = set()
        tensors = [dict(_tensors(adapter)) for adapter in members]
        for name, first in tensors[0].items():
            if all(torch.equal(own[name], first) for own in tensors):
                self._common.add(name)
                self.register_buffer(name, first.detach())
            else:
                self.register_buffer(name, torch.stack([own[name].detach() for own in tensors]))

    def index(self, name: str) -> int:
        """The place of an adapter."""
        return self.names.index(name)

    def fold(self, which: Int[Tensor, "b"], dtype: torch.dtype) -> Adaptation:
        """Folds one adapter for each of b sequences.

        Args:
            which: their indices.
            dtype: of the language model's matrix products.
        """
        pattern, buffers = self._pattern[0], dict(self.named_buffers())
        common = {name: buffers[name] for name in self._common}
        # Each adapter once, however many sequences use it.
        members, places = which.unique(return_inverse=True)
        own = {name: buffer[members] for name, buffer in buffers.items() if name not in common}

        def fold_one(own: dict[str, Tensor]) -> tuple[Tensor, ...]:
            return cast(tuple[Tensor, ...], functional_call(pattern, own | common, (dtype,)))

        with torch.autocast(which.device.type, enabled=False):
            if own:
                folded = torch.vmap(fold_one)(own)
            else:
                folded = [torch.stack([tensor] * len(members)) for tensor in fold_one({})]
            return pattern.adaptation(tuple(tensor[places].transpose(0, 1) for tensor in folded))


def read_bank(folders: dict[str, Path], lm: AdaptedModel, base_hash: str) -> AdapterBank:
    """Reads saved adapters of one language model.

    Args:
        folders: what `save_adapter` wrote, by the name to give each.
        lm: the language model; it is left as it is.
        base_hash: fingerprint of its weights (`weights_hash`).

    Raises:
        UserError: an adapter cannot be read, belongs to another language model, or is of another
            kind than the first.
    """
    adapters = {}
    for name, folder in folders.items():
        saved = read_adapter(folder)
        require_base(saved, lm, folder, base_hash)
        saved.adapter.settle(lm, fresh=False)
        adapters[name] = saved.adapter
    return AdapterBank(adapters)


@dataclass(frozen=True, eq=False)
class AdapterChoice:
    """Which adapter each sequence of a batch uses.

    Attributes:
        bank: the adapters.
        which: the index of one for each of b sequences.
    """

    bank: AdapterBank
    which: Int[Tensor, "b"]

    def fold(self, dtype: torch.dtype) -> Adaptation:
        """See `AdapterBank`."""
        return self.bank.fold(self.which, dtype)


def _tensors(adapter: Adapter) -> list[tuple[str, Tensor]]:
    return [*adapter.named_parameters(), *adapter.named_buffers()]


def _require_alike(first: str, one: Adapter, name: str, other: Adapter) -> None:
    if one.shape != other.shape:
        raise UserError(f"adapters {first} and {name} belong to language models of different sizes")
    for field in fields(AdapterConfig):
        ours, theirs = (getattr(adapter.config, field.name) for adapter in (one, other))
        if field.name == "targets":
            ours, theirs = one.targets, other.targets
        if ours != theirs and field.name not in _TRAINING_ONLY:
            raise UserError(
                f"adapters {first} and {name} cannot share a batch: {field.name} is {ours} and"
                f" {theirs}"
            )
