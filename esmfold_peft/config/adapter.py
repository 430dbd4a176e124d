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
    """The adapter of the language model.

    Attributes:
        kind: none (frozen, as in ESMFold), full (trains all its weights), or a method: lora,
            lora_fa, dora, lorta, lotr, fact_tt, fact_tk, loretta_rep, loretta_adp, tt_lora, vera,
            nola, ia3, bitfit. Settings that a method does not use are refused; none and full use
            none.
        rank: rank r of the factors (the TT-rank of tt_lora, the bottleneck of loretta_adp); not for
            ia3 and bitfit. Training warns of a rank above what a method can use.
        alpha: the update is scaled by a factor s that depends on alpha; not for vera, ia3 and
            bitfit.
        scaling: s is alpha/r, alpha/sqrt(r) (rsLoRA), or constant: alpha itself (as FacT and
            TT-LoRA are published).
        targets: adapted matrices: query, key, value and output of the attention, fc1 and fc2 of the
            feed-forward block. The paper's counts imply query, key, value.
        init: start of the factors: unit (outputs unchanged; lorta has random signs, so that one
            alpha / rank suits every rank), paper (as the method's authors start it; loretta_rep,
            loretta_adp and tt_lora then change outputs from the start), or direct (tt_lora only, as
            in its authors' later programs: small random cores).
        modes: lorta's shared modes. Without a mode there is one tensor for each head's matrix, each
            matrix or each layer (LoRTA Table 4); without any it is LoRA.
        orientation: the side of lorta's heads: paper (output side of query, key, value, input side
            of output), peft (always input) or litgpt (always output), as in the authors' programs.
        component_weights: a learned factor for each of lorta's r components.
        tt_rank: TT-rank of loretta_rep and loretta_adp.
        bases: random bases k of each factor of nola.
        norms: bitfit also adapts the biases of both layer norms; needs all six targets.
        freeze: names of factors that keep their start.
        lr_factors: names of factors, each with a multiplier of its learning rate, on top of
            optimizer.lr_adapter (LoRA+: b 16).
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
