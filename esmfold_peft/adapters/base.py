"""What an adapter is to the language model that carries it.

An adapter owns all its parameters, those that layers share included; layers hold none. Once in a
forward pass it folds them into what every layer needs (`Adaptation`), and that is handed down
explicitly: nothing is cached between passes, so activation checkpointing, data parallelism and
torch.compile need no special case.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from esmfold_peft.config import AdapterConfig, Target
from esmfold_peft.config.adapter import SPECIAL, WITHOUT_ALPHA, has_start, unused_settings
from esmfold_peft.errors import UserError

Group = tuple[Target, ...]

INPUTS: Group = ("query", "key", "value")
OUTPUT: Group = ("output",)
FC1: Group = ("fc1",)
FC2: Group = ("fc2",)
GROUPS: tuple[Group, ...] = (INPUTS, OUTPUT, FC1, FC2)
"""Matrices of a layer that read the same input, in the order in which a layer applies them."""

ATTENTION: Group = INPUTS + OUTPUT
TARGETS: Group = ATTENTION + FC1 + FC2


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of a language model's layers.

    Attributes:
        layers: number of layers L.
        width: hidden width d; the feed-forward block is 4 d wide inside.
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

    def fan_in(self, target: Target) -> int:
        """Inputs of a matrix."""
        return 4 * self.width if target == "fc2" else self.width

    def fan_out(self, target: Target) -> int:
        """Outputs of a matrix."""
        return 4 * self.width if target == "fc1" else self.width


class Adaptation(ABC):
    """An adapter folded for one forward pass; reads no parameter."""

    def input(self, layer: int, group: Group, x: Float[Tensor, "t i"]) -> Float[Tensor, "t i"]:
        """What a group of matrices reads instead of x."""
        return x

    @abstractmethod
    def output(
        self,
        layer: int,
        group: Group,
        x: Float[Tensor, "t i"],
        y: Float[Tensor, "t w"],
        matrices: nn.Module,
    ) -> Float[Tensor, "t n o"]:
        """The outputs of a group of matrices that read the same input.

        Args:
            layer: 0-based layer.
            group: one of `GROUPS`, n matrices.
            x: what these matrices read, for all tokens of the batch.
            y: what they computed, side by side, biases included; it may be overwritten.
            matrices: the linear layer that computed it, for a method whose update depends on the
                weights under it. To be called, not read: ZeRO stage 3 gathers weights on a call.
        """


@dataclass(frozen=True, eq=False)
class MergedPart:
    """One matrix with what an adapter does written in, in float32.

    Attributes:
        layer: 0-based layer.
        target: which matrix of it.
        weight: the matrix.
        bias: its bias.
    """

    layer: int
    target: Target
    weight: Float[Tensor, "o i"]
    bias: Float[Tensor, "o"]


class Adapter(nn.Module, ABC):
    """A trainable change of chosen matrices of a language model.

    Attributes:
        shape: sizes of the language model.
        config: kind, rank, alpha, targets, init and the method's own settings.
        targets: adapted matrices in the order of `TARGETS`, whatever their order in the config.
        scale: the factor s on the update; None for a method without one.
    """

    allowed: ClassVar[Group] = TARGETS
    """Matrices that the method can adapt."""

    may_stay_zero: ClassVar[tuple[str, ...]] = ()
    """Factors that may be frozen at zero: without them the method still changes the model."""

    def __init__(self, shape: AttentionShape, config: AdapterConfig) -> None:
        super().__init__()
        self.shape = shape
        self.config = config
        self.check(config)
        self.targets: Group = tuple(target for target in TARGETS if target in config.targets)
        self.scale = self.scale_of(config)

    @staticmethod
    def scale_of(config: AdapterConfig) -> float | None:
        """The factor s that settings make; None for a method without one."""
        if config.kind in WITHOUT_ALPHA:
            return None
        divisor = {"alpha/r": config.rank, "alpha/sqrt(r)": config.rank**0.5, "constant": 1.0}
        return config.alpha / divisor[config.scaling]

    @classmethod
    def check(cls, config: AdapterConfig) -> None:
        """Refuses settings that make no adapter of this kind.

        Raises:
            UserError: rank or alpha not positive; no target, one named twice or not adaptable; a
                setting that this method does not have.
        """
        _check_numbers(config)
        _check_targets(config, cls.allowed)
        default = AdapterConfig()
        for name in sorted(SPECIAL & unused_settings(config.kind)):
            if (value := getattr(config, name)) != getattr(default, name):
                raise UserError(f"adapter.{name}: {value} has no meaning for {config.kind}")
        if not has_start(config.kind, config.init):
            raise UserError(f"adapter.init: {config.init} has no meaning for {config.kind}")

    def useful_ranks(self) -> dict[str, int]:
        """By setting, the largest rank that lets the method reach more updates.

        Empty where there is no such limit, or none that is exact.
        """
        return {}

    def rank_warnings(self) -> list[str]:
        """One line for every rank setting above what the method can use."""
        return [
            f"adapter.{name}: {value} is more than {self.config.kind} can use here;"
            f" above {useful} no further update can be reached"
            for name, useful in self.useful_ranks().items()
            if (value := getattr(self.config, name)) > useful
        ]

    def settle(self, lm: "AdaptedModel", *, fresh: bool) -> None:
        """Takes from the weights of the language model what the method needs of them.

        Args:
            lm: the language model that will carry the adapter.
            fresh: start factors from the weights; otherwise they stay as they were read.
        """

    def freeze_factors(self) -> None:
        """Freezes what the config freezes, and checks the names of factors in it.

        Raises:
            UserError: `freeze` or `lr_factors` name no factor of this adapter, or one that must not
                be frozen.
        """
        own = self.factor_parameters()
        for setting in ("freeze", "lr_factors"):
            for name in getattr(self.config, setting):
                if name not in own:
                    raise UserError(
                        f"adapter.{setting}: {self.config.kind} has no factor {name};"
                        f" it has {', '.join(own)}"
                    )
        for name in self.config.freeze:
            optional = name in self.may_stay_zero
            if not optional and not any(parameter.any() for parameter in own[name]):
                raise UserError(f"adapter.freeze: {name} starts at zero and would stay zero")
            for parameter in own[name]:
                parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise UserError("adapter.freeze: nothing is left to train")
        for name in self.config.lr_factors:
            if not own[name][0].requires_grad:
                raise UserError(f"adapter.lr_factors: {name} is frozen")

    def set_factor(self, name: str, target: Target, value: Tensor) -> None:
        """Registers a factor that one matrix has for itself in all layers.

        It is a parameter of this module, not of a container in it: ZeRO stage 3 gathers what the
        called module itself owns.
        """
        self.register_parameter(f"{name}_{target}", nn.Parameter(value))

    def factor(self, name: str, target: Target) -> Tensor:
        """What `set_factor` registered, in float32 or wider."""
        # Not get_parameter: a bank of adapters puts tensors in its place.
        return wide(cast(Tensor, getattr(self, f"{name}_{target}")))

    def side_by_side(self, name: str, group: Group, absent: float) -> Float[Tensor, "l w"]:
        """A vector factor (l, o) of the matrices of a group in one.

        Args:
            name: of the factor.
            group: one of `groups()`; its matrices have equally many outputs.
            absent: the value for matrices that are not adapted.
        """
        own = self.factor(name, self.members(group)[0])
        vectors = [
            self.factor(name, target) if target in self.targets else torch.full_like(own, absent)
            for target in group
        ]
        return torch.cat(vectors, dim=1)

    def factor_parameters(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by the name of their factor, targets left out."""
        found: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            ending = next((t for t in self.targets if name.endswith(f"_{t}")), "")
            found.setdefault(name.removesuffix(f"_{ending}"), []).append(parameter)
        return found

    def fold(self, dtype: torch.dtype) -> Adaptation:
        """Computes in float32, once for all layers, what they share, then casts it.

        Args:
            dtype: of the language model's matrix products.
        """
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            return self.adaptation(self(dtype))

    @abstractmethod
    def forward(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The folded factors: each tensor has a first dimension of L layers, or of 1 for all.

        A module call that returns plain tensors, because ZeRO stage 3 gathers the parameters by
        hooks on both: in the forward pass on the call, in the backward pass on these tensors.
        """

    @abstractmethod
    def adaptation(self, folded: tuple[Tensor, ...]) -> Adaptation:
        """Shares out folded factors to layers and groups; reads no parameter.

        Args:
            folded: what `forward` returned; or, for sequences with adapters of their own, the
                same with a second dimension of b sequences (`bank`).
        """

    @abstractmethod
    def merged(self, lm: "AdaptedModel") -> Iterator[MergedPart]:
        """The weights and biases that do what the adapter does, of every adapted matrix.

        Args:
            lm: the language model under the adapter; it is left as it is.

        Raises:
            UserError: the method cannot be merged.
        """

    def members(self, group: Group) -> Group:
        """The adapted matrices of a group."""
        return tuple(target for target in group if target in self.targets)

    def groups(self) -> tuple[Group, ...]:
        """The groups with adapted matrices."""
        return tuple(group for group in GROUPS if self.members(group))

    def matrices(self) -> Iterator[tuple[int, Target]]:
        """Layer and name of every adapted matrix."""
        for layer in range(self.shape.layers):
            for target in self.targets:
                yield layer, target


@runtime_checkable
class AdaptedModel(Protocol):
    """What adapters need of a language model; an `nn.Module`.

    Attributes:
        shape: sizes of its layers.
        adapter: the adapter that it applies; a submodule named "adapter".
    """

    shape: AttentionShape
    adapter: Adapter | None

    def weight(self, layer: int, target: Target) -> Float[Tensor, "o i"]:
        """The matrix that an adapter changes; a view that writes through."""
        ...

    def bias(self, layer: int, target: Target) -> Float[Tensor, "o"]:
        """Its bias; a view that writes through."""
        ...

    def base_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and values of its own parameters, the adapter's left out."""
        ...


def wide(tensor: Tensor) -> Tensor:
    """A tensor in float32, in which factors are folded; float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def by_layer(tensor: Tensor, layers: int) -> tuple[Tensor, ...]:
    """One tensor a layer of a folded one; all layers share that of length 1."""
    # unbind, not indexing: its gradient is one stack instead of one zero-filled tensor a layer.
    return tensor.expand(layers, *tensor.shape[1:]).unbind(0)


def per_token(vector: Float[Tensor, "*b w"], tokens: int) -> Float[Tensor, "_ w"]:
    """A folded vector to be broadcast over tokens; each of b sequences has equally many of them."""
    if vector.ndim == 1:
        return vector[None]
    return vector.repeat_interleave(tokens // len(vector), dim=0)


def _check_numbers(config: AdapterConfig) -> None:
    for name in ("rank", "alpha", "tt_rank", "bases"):
        if not 0 < (value := getattr(config, name)) < math.inf:
            raise UserError(f"adapter.{name}: {value} is not a positive number")
    for name, factor in config.lr_factors.items():
        if not 0 < factor < math.inf:
            raise UserError(
                f"adapter.lr_factors: {name} has {factor}, but a multiplier must be above 0 and"
                " finite; use adapter.freeze to keep a factor as it starts"
            )


def _check_targets(config: AdapterConfig, allowed: Group) -> None:
    if not config.targets:
        raise UserError(f"adapter.targets: empty; name some of {', '.join(allowed)}")
    for target in config.targets:
        if config.targets.count(target) > 1:
            raise UserError(f"adapter.targets: {target} is named twice")
        if target not in allowed:
            raise UserError(
                f"adapter.targets: {config.kind} cannot adapt {target}, only {', '.join(allowed)}"
            )
