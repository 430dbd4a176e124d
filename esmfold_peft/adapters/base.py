"""Adapters, and the parts of a language model that they need.

An adapter owns all its parameters, also those that layers share. Once in a forward pass it folds
them into what every layer needs (`Adaptation`), which is handed down explicitly. Nothing is cached
between passes, so activation checkpointing, data parallelism and torch.compile need no special
case.

A new method is a class here (`low_rank.LowRankAdapter` if its update is a product of two thin
factors), a line in `insert.ADAPTERS`, and its name in `config.adapter.AdapterKind`.
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
Factors = tuple[Tensor, ...]

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
    """Sizes of a language model.

    Attributes:
        layers: number of layers L.
        width: hidden width d; the feed-forward block is 4 d wide inside.
        heads: attention heads H in each layer.
    """

    layers: int
    width: int
    heads: int

    def __post_init__(self) -> None:
        """Checks that every head has an even number of channels, as rotary positions need."""
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


SIZES = {
    "esm2_t6_8M_UR50D": AttentionShape(layers=6, width=320, heads=20),
    "esm2_t12_35M_UR50D": AttentionShape(layers=12, width=480, heads=20),
    "esm2_t30_150M_UR50D": AttentionShape(layers=30, width=640, heads=20),
    "esm2_t33_650M_UR50D": AttentionShape(layers=33, width=1280, heads=20),
    "esm2_t36_3B_UR50D": AttentionShape(layers=36, width=2560, heads=40),
    "esm2_t48_15B_UR50D": AttentionShape(layers=48, width=5120, heads=40),
}
"""Sizes of the published ESM-2 models (Lin et al. 2023)."""


def size_of(name: str) -> AttentionShape:
    """Sizes of a published model; a UserError lists the names if there is none of this name."""
    if name not in SIZES:
        raise UserError(f'language model "{name}" is unknown; there are {", ".join(SIZES)}')
    return SIZES[name]


@dataclass(frozen=True, eq=False)
class MergedPart:
    """One matrix and its bias with what an adapter does written in."""

    layer: int
    target: Target
    weight: Float[Tensor, "o i"]
    bias: Float[Tensor, "o"]


class Adapter(nn.Module, ABC):
    """A trainable change of chosen matrices of a language model.

    A method registers its factors in `__init__` and defines `forward`, `merged`, and one or both of
    `change_input` and `change_output`.

    Attributes:
        shape: sizes of the language model.
        config: kind, rank, alpha, targets, init and the method's own settings.
        targets: adapted matrices in the order of `TARGETS`, not that of the config.
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

    @abstractmethod
    def forward(self, dtype: torch.dtype) -> tuple[Factors, ...]:
        """The folded factors of each of `groups`, in the type of the matrix products.

        Each tensor has a first dimension of L layers, or of 1 for all. It runs in float32, outside
        autocast. A module call that returns plain tensors, because ZeRO stage 3 gathers the
        parameters by hooks on both: in the forward pass on the call, in the backward pass on these
        tensors.
        """

    def change_input(
        self, group: Group, factors: Factors, x: Float[Tensor, "t i"]
    ) -> Float[Tensor, "t i"]:
        """The input that a group of matrices reads instead of x; see `change_output`."""
        return x

    def change_output(
        self,
        group: Group,
        factors: Factors,
        x: Float[Tensor, "t i"],
        y: Float[Tensor, "t w"],
        matrices: nn.Module,
    ) -> Float[Tensor, "t n o"]:
        """The outputs of a group of n matrices that read the same input. It reads no parameter.

        Args:
            group: one of `groups`.
            factors: the group's tensors of `forward` for one layer; for sequences with adapters of
                their own each has a first dimension of b sequences (`bank`).
            x: what these matrices read, for all tokens of the batch.
            y: what they computed, side by side, biases included; it may be overwritten.
            matrices: the linear layer that computed it, for a method whose update depends on the
                weights under it. To be called, not read: ZeRO stage 3 gathers weights on a call.
        """
        return y.unflatten(-1, (len(group), -1))

    @abstractmethod
    def merged(self, lm: "AdaptedModel") -> Iterator[MergedPart]:
        """Every adapted matrix and its bias with what the adapter does, in float32.

        The language model under the adapter is left as it is. A method that cannot be merged raises
        a UserError.
        """

    def settle(self, lm: "AdaptedModel", *, fresh: bool) -> None:
        """Takes what the method needs from the weights of the model that will carry the adapter.

        Factors start from the weights only if they are `fresh`, not if they were read.
        """

    def useful_ranks(self) -> dict[str, int]:
        """By setting, the rank above which the method reaches no more updates.

        Empty where there is no such limit, or none that is exact.
        """
        return {}

    @classmethod
    def check(cls, config: AdapterConfig) -> None:
        """Refuses settings that make no adapter of this kind."""
        _check_numbers(config)
        _check_targets(config, cls.allowed)
        default = AdapterConfig()
        for name in sorted(SPECIAL & unused_settings(config.kind)):
            if (value := getattr(config, name)) != getattr(default, name):
                raise UserError(
                    f"adapter.{name}: {value} has no meaning for {config.kind}; remove it"
                )
        if not has_start(config.kind, config.init):
            raise UserError(
                f"adapter.init: {config.init} has no meaning for {config.kind}; use unit or paper"
            )

    @staticmethod
    def scale_of(config: AdapterConfig) -> float | None:
        """The factor s that settings make; None for a method without one."""
        if config.kind in WITHOUT_ALPHA:
            return None
        divisor = {"alpha/r": config.rank, "alpha/sqrt(r)": config.rank**0.5, "constant": 1.0}
        return config.alpha / divisor[config.scaling]

    def rank_warnings(self) -> list[str]:
        """One line for every rank setting above what the method can use."""
        return [
            f"adapter.{name}: {value} is more than {self.config.kind} can use here;"
            f" above {useful} no further update can be reached"
            for name, useful in self.useful_ranks().items()
            if (value := getattr(self.config, name)) > useful
        ]

    def freeze_factors(self) -> None:
        """Freezes what the config freezes, and checks the names of factors in it."""
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
                raise UserError(
                    f"adapter.freeze: {name} starts at zero and would stay zero; remove it"
                )
            for parameter in own[name]:
                parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise UserError("adapter.freeze: nothing is left to train; freeze fewer factors")
        for name in self.config.lr_factors:
            if not own[name][0].requires_grad:
                raise UserError(f"adapter.lr_factors: {name} is frozen; remove it")

    def set_factor(self, name: str, target: Target, value: Tensor) -> None:
        """Registers a factor that one matrix has for itself in all layers.

        It is a parameter of this module, not of a container in it: ZeRO stage 3 gathers what the
        called module itself owns.
        """
        self.register_parameter(f"{name}_{target}", nn.Parameter(value))

    def factor(self, name: str, target: Target) -> Tensor:
        """A factor that `set_factor` registered, in float32 or wider."""
        # Not get_parameter: a bank of adapters puts tensors in its place.
        return wide(cast(Tensor, getattr(self, f"{name}_{target}")))

    def side_by_side(self, name: str, group: Group, absent: float) -> Float[Tensor, "l w"]:
        """A vector factor (l, o) of the matrices of a group in one; `absent` where not adapted."""
        own = self.factor(name, self.members(group)[0])
        vectors = [
            self.factor(name, target) if target in self.targets else torch.full_like(own, absent)
            for target in group
        ]
        return torch.cat(vectors, dim=1)

    def factor_parameters(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by the name of their factor, without the target's name."""
        found: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            ending = next((t for t in self.targets if name.endswith(f"_{t}")), "")
            found.setdefault(name.removesuffix(f"_{ending}"), []).append(parameter)
        return found

    def fold(self, dtype: torch.dtype) -> "Adaptation":
        """Computes in float32, once for all layers, what they need, then casts it to `dtype`."""
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            return Adaptation(self, self(dtype))

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


class Adaptation:
    """An adapter folded for one forward pass; reads no parameter.

    Its factors are what `Adapter.forward` returned; or, for sequences with adapters of their own,
    the same with a second dimension of b sequences.
    """

    def __init__(self, adapter: Adapter, folded: tuple[Factors, ...]) -> None:
        self.adapter = adapter
        # unbind, not indexing: its gradient is one stack instead of one zero-filled tensor a layer.
        self.factors = {
            group: [t.expand(adapter.shape.layers, *t.shape[1:]).unbind(0) for t in tensors]
            for group, tensors in zip(adapter.groups(), folded, strict=True)
        }

    def input(self, layer: int, group: Group, x: Float[Tensor, "t i"]) -> Float[Tensor, "t i"]:
        """The input that the matrices of a group read instead of x."""
        if group not in self.factors:
            return x
        return self.adapter.change_input(group, self._of(layer, group), x)

    def output(
        self,
        layer: int,
        group: Group,
        x: Float[Tensor, "t i"],
        y: Float[Tensor, "t w"],
        matrices: nn.Module,
    ) -> Float[Tensor, "t n o"]:
        """The outputs of the matrices of a group in a layer; see `Adapter.change_output`."""
        if group not in self.factors:
            return y.unflatten(-1, (len(group), -1))
        return self.adapter.change_output(group, self._of(layer, group), x, y, matrices)

    def _of(self, layer: int, group: Group) -> Factors:
        return tuple(tensors[layer] for tensors in self.factors[group])


@runtime_checkable
class AdaptedModel(Protocol):
    """The parts of a language model that adapters need; an `nn.Module`.

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
        """Names and values of its own parameters, without the adapter's."""
        ...


def wide(tensor: Tensor) -> Tensor:
    """A tensor in float32, in which factors are folded; float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def uniform(bound: float, *shape: int) -> Tensor:
    """Numbers uniform between -bound and bound."""
    return torch.empty(*shape).uniform_(-bound, bound)


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
                " finite; use adapter.freeze to keep a factor at its start"
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
