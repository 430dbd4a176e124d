"""What is trained inside the language model."""

from dataclasses import dataclass, field, fields
from typing import Literal

Target = Literal["query", "key", "value", "output", "fc1", "fc2"]
AdapterKind = Literal[
    "none",
    "full",
    "lora",
    "lora_fa",
    "dora",
    "lorta",
    "lotr",
    "fact_tt",
    "fact_tk",
    "loretta_rep",
    "loretta_adp",
    "tt_lora",
    "vera",
    "nola",
    "ia3",
    "bitfit",
]
Init = Literal["unit", "paper", "direct"]


@dataclass(frozen=True)
class AdapterConfig:
    """What is trained inside the language model.

    Attributes:
        kind: none (frozen, as in ESMFold), full (all its weights train), or a method: lora,
            lora_fa, dora, lorta, lotr, fact_tt, fact_tk, loretta_rep, loretta_adp, tt_lora, vera,
            nola, ia3, bitfit. Settings that a kind does not use are refused; none and full use no
            other one.
        rank: rank r of the factors (the TT-rank of tt_lora, the bottleneck of loretta_adp); ia3 and
            bitfit have none. Training warns of a rank above what a method can use.
        alpha: the update is scaled by a factor s made of alpha; vera, ia3 and bitfit have none.
        scaling: s is alpha/r, alpha/sqrt(r) (rsLoRA), or constant, alpha itself (as FacT and
            TT-LoRA publish theirs).
        targets: adapted matrices: query, key, value, output of the attention, fc1 and fc2 of the
            feed-forward block. The paper's counts imply query, key, value.
        init: start of the factors: unit (no output changes; for lorta random signs, so that the
            same alpha / rank suits every rank), paper (as the method's authors start it;
            loretta_rep, loretta_adp and tt_lora then change outputs from the start), or for tt_lora
            direct (as its authors' later programs do: small random cores).
        modes: lorta's shared modes; without one there is a tensor for each head's matrix, each
            matrix or each layer (LoRTA Table 4). None of them is LoRA.
        orientation: where lorta's heads lie: paper (output side of query, key, value, input side of
            output), peft (always input) or litgpt (always output), as the authors' programs do.
        component_weights: a learned factor for each of lorta's r components.
        tt_rank: TT-rank of loretta_rep and loretta_adp.
        bases: random bases k of each factor of nola.
        norms: bitfit adapts the biases of both layer norms too; it needs all six targets.
        freeze: factors that stay as they are drawn, by name.
        lr_factors: factors of the adapter by name, each with a multiplier above 0 of its learning
            rate, on top of optimizer.lr_adapter (LoRA+: b 16).
    """

    kind: AdapterKind = "lorta"
    rank: int = 1
    alpha: float = 1.0
    scaling: Literal["alpha/r", "alpha/sqrt(r)", "constant"] = "alpha/r"
    targets: tuple[Target, ...] = ("query", "key", "value")
    init: Init = "unit"
    modes: tuple[Literal["heads", "matrices", "layers"], ...] = ("heads", "matrices", "layers")
    orientation: Literal["paper", "peft", "litgpt"] = "paper"
    component_weights: bool = False
    tt_rank: int = 5
    bases: int = 64
    norms: bool = False
    freeze: tuple[str, ...] = ()
    lr_factors: dict[str, float] = field(default_factory=dict)


WITHOUT_RANK = ("none", "full", "ia3", "bitfit")

WITHOUT_ALPHA = (*WITHOUT_RANK, "vera")

WITHOUT_UPDATE = ("none", "full", "bitfit", "loretta_adp")
"""Kinds without a change ΔW of a matrix that could be measured: full keeps no copy of its start,
bitfit changes biases, loretta_adp is not linear."""

_ONLY_OF: dict[str, tuple[AdapterKind, ...]] = {
    "modes": ("lorta",),
    "orientation": ("lorta",),
    "component_weights": ("lorta",),
    "tt_rank": ("loretta_rep", "loretta_adp"),
    "bases": ("nola",),
    "norms": ("bitfit",),
}

SPECIAL = frozenset(_ONLY_OF)
"""Settings that some methods alone have."""


def unused_settings(kind: str) -> frozenset[str]:
    """Names of the settings of `AdapterConfig` that a kind does not use."""
    if kind in ("none", "full"):
        return frozenset(f.name for f in fields(AdapterConfig)) - {"kind"}
    unused = {name for name, kinds in _ONLY_OF.items() if kind not in kinds}
    unused |= {"rank"} if kind in WITHOUT_RANK else set()
    return frozenset(unused | ({"alpha", "scaling"} if kind in WITHOUT_ALPHA else set()))


def has_start(kind: str, init: Init) -> bool:
    """Whether a kind has this start; none and full, which draw nothing, have every one."""
    return init != "direct" or kind in ("tt_lora", "none", "full")
