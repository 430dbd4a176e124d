"""Many adapters at once: each sequence of a batch uses its own (LoRTA appendix G).

Adapters of one kind stay in memory as they are on disk, with their factors stacked. A batch folds
the adapters of its sequences together. They share the language model, which is computed once.
"""

from copy import deepcopy
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.func import functional_call

from esmfold_peft.adapters.base import Adaptation, AdaptedModel, Adapter, Factors
from esmfold_peft.adapters.io import read_adapter, require_base
from esmfold_peft.config import AdapterConfig
from esmfold_peft.errors import UserError

_TRAINING_ONLY = {"init", "freeze", "lr_factors"}


class AdapterBank(nn.Module):
    """Adapters that differ in the values of their factors only, settled on one language model.

    `names` are in the order of their indices. A UserError names two that differ in a setting or in
    their language model's sizes.
    """

    def __init__(self, adapters: dict[str, Adapter]) -> None:
        super().__init__()
        self.names = tuple(adapters)
        members = list(adapters.values())
        for name, adapter in adapters.items():
            _require_alike(self.names[0], members[0], name, adapter)
        # A list hides the pattern from `parameters`: it has shapes, and no numbers of its own.
        self._pattern = [deepcopy(members[0]).to("meta")]
        # Tensors common to all, such as VeRA's random matrices of one seed, are kept once.
        self._common: set[str] = set()
        tensors = [{**dict(a.named_parameters()), **dict(a.named_buffers())} for a in members]
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
        """Folds the adapters with these indices, one for each of b sequences; see `Adapter`."""
        pattern, buffers = self._pattern[0], dict(self.named_buffers())
        common = {name: buffers[name] for name in self._common}
        # Each adapter once, however many sequences use it.
        members, places = which.unique(return_inverse=True)
        own = {name: buffer[members] for name, buffer in buffers.items() if name not in common}

        def fold_one(own: dict[str, Tensor]) -> tuple[Factors, ...]:
            return functional_call(pattern, own | common, (dtype,))  # pyright: ignore

        def of_sequences(tensor: Tensor) -> Tensor:
            # If all have everything in common, there is no dimension of adapters.
            each = tensor[places] if own else torch.stack([tensor] * len(places))
            return each.transpose(0, 1)

        with torch.autocast(which.device.type, enabled=False):
            folded = torch.vmap(fold_one)(own) if own else fold_one({})
            return Adaptation(pattern, tuple(tuple(map(of_sequences, group)) for group in folded))


def read_bank(folders: dict[str, Path], lm: AdaptedModel, base_hash: str) -> AdapterBank:
    """Reads saved adapters of one language model, by the name to give each.

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
    """Which adapter of a bank each sequence of a batch uses, by index."""

    bank: AdapterBank
    which: Int[Tensor, "b"]

    def fold(self, dtype: torch.dtype) -> Adaptation:
        """See `AdapterBank`."""
        return self.bank.fold(self.which, dtype)


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
