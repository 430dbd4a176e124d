"""What an adapter is to the language model that carries it.

An adapter owns all its parameters, those that layers share included; layers hold none. Once in a
forward pass it folds them into what every layer needs (`Deltas`), and that is handed down
explicitly: nothing is cached between passes, so activation checkpointing, data parallelism and
torch.compile need no special case.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from esmfold_peft.config import AdapterConfig, Target
from esmfold_peft.errors import UserError

Group = tuple[Target, ...]

INPUTS: Group = ("query", "key", "value")
OUTPUT: Group = ("output",)
GROUPS: tuple[Group, ...] = (INPUTS, OUTPUT)
"""Matrices of a layer that read the same input, in the order in which a layer applies them."""

TARGETS: tuple[Target, ...] = INPUTS + OUTPUT


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of a language model's attention.

    Attributes:
        layers: number of layers L.
        width: hidden width d.
        heads: attention heads H in each layer.
    """

    layers: int
    width: int
    heads: int

    def __post_init__(self) -> None:
        """Checks that every head has an even number of channels, as rotary positions need.

        Raises:
            UserError: a size is not positive, or the width does not split into even heads.
        """
        text = f"language model of {self.layers} layers, width {self.width}, {self.heads} heads"
        if min(self.layers, self.width, self.heads) < 1:
            raise UserError(f"{text}: sizes must be positive")
        if self.width % (2 * self.heads):
            raise UserError(f"{text}: the width must be a multiple of twice the heads")

    @property
    def head_width(self) -> int:
        """Channels d_h of one head."""
        return self.width // self.heads


@runtime_checkable
class Deltas(Protocol):
    """An adapter folded for one forward pass."""

    def __call__(
        self, layer: int, group: Group, x: Float[Tensor, "*batch d"]
    ) -> tuple[Tensor | None, ...]:
        """What to add to the outputs of a group of matrices that read the same input.

        Args:
            layer: 0-based layer.
            group: one of `GROUPS`.
            x: the input of these matrices.

        Returns:
            One (*batch, d) tensor for each matrix of the group, None where it is not adapted.
        """
        ...


class Adapter(nn.Module, ABC):
    """A trainable change ΔW of chosen attention matrices, linear in the input and 0 at the start.

    Attributes:
        shape: sizes of the language model.
        config: kind, rank, alpha, targets and init.
        targets: adapted matrices in the order of `TARGETS`, whatever their order in the config.
        scale: the factor s = alpha / rank of every ΔW.
    """

    def __init__(self, shape: AttentionShape, config: AdapterConfig) -> None:
        super().__init__()
        check_config(config)
        self.shape = shape
        self.config = config
        self.targets: Group = tuple(target for target in TARGETS if target in config.targets)
        self.scale = config.alpha / config.rank

    def fold(self, dtype: torch.dtype) -> Deltas:
        """Computes in float32, once for all layers, what they share, then casts it.

        Args:
            dtype: of the language model's matrix products.
        """
        return self.deltas(self(dtype))

    @abstractmethod
    def forward(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The folded factors.

        A module call that returns plain tensors, because ZeRO stage 3 gathers the parameters by
        hooks on both: in the forward pass on the call, in the backward pass on these tensors.
        """

    @abstractmethod
    def deltas(self, folded: tuple[Tensor, ...]) -> Deltas:
        """Shares out folded factors to layers and groups; reads no parameter."""

    @abstractmethod
    def delta_weight(self, layer: int, target: Target) -> Float[Tensor, "d d"]:
        """The dense ΔW of one matrix in float32, (out, in) as in `nn.Linear`.

        Args:
            layer: 0-based layer.
            target: one of `targets`; another raises ValueError.
        """

    def members(self, group: Group) -> Group:
        """The adapted matrices of a group, a contiguous run of `targets`."""
        return tuple(target for target in group if target in self.targets)

    def matrices(self) -> Iterator[tuple[int, Target]]:
        """Layer and name of every adapted matrix."""
        for layer in range(self.shape.layers):
            for target in self.targets:
                yield layer, target


@runtime_checkable
class AdaptedModel(Protocol):
    """What adapters need of a language model; an `nn.Module`.

    Attributes:
        shape: sizes of its attention.
        adapter: the adapter that it applies; a submodule named "adapter".
    """

    shape: AttentionShape
    adapter: Adapter | None

    def projection(self, layer: int, target: Target) -> nn.Linear:
        """The matrix that an adapter changes."""
        ...

    def base_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and values of its own parameters, the adapter's left out."""
        ...


def check_config(config: AdapterConfig) -> None:
    """Refuses an adapter that would adapt nothing.

    Raises:
        UserError: rank or alpha not positive; no target, or one named twice.
    """
    if config.rank < 1:
        raise UserError(f"adapter.rank: {config.rank} is not a positive number")
    if not config.alpha > 0:
        raise UserError(f"adapter.alpha: {config.alpha} is not a positive number")
    if not config.targets:
        raise UserError(f"adapter.targets: empty; name some of {', '.join(TARGETS)}")
    for target in config.targets:
        if config.targets.count(target) > 1:
            raise UserError(f"adapter.targets: {target} is named twice")
