"""Table 1 of the LoRTA paper (arXiv 2410.04060): parameters on Llama2-7B, checked.

Every printed number stands beside what the formula in the same row gives, and beside what this
project's adapter of that method counts at the same sizes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.insert import count
from esmfold_peft.config import AdapterConfig, AdapterKind, Target

LLAMA2_7B = AttentionShape(layers=32, width=4096, heads=32)
TARGETS: tuple[Target, ...] = ("query", "value")

L, D, H, M = LLAMA2_7B.layers, LLAMA2_7B.width, LLAMA2_7B.heads, len(TARGETS)

LORETTA_MODES = {4: (5,) * 6, 64: (64,) * 3}
"""LoReTTA's k_i by rank, from the caption, which asks that their product be d·r."""

_UNITS = {"k": 10**3, "M": 10**6}

_RANKS = (4, 64)

_FORMULAS: dict[str, tuple[str, Callable[[int], int], AdapterKind | None]] = {
    "LoRA": ("2MLdr", lambda r: 2 * M * L * D * r, "lora"),
    "LoReTTA": ("MLr² Σk", lambda r: M * L * r**2 * sum(LORETTA_MODES[r]), None),
    "LoTR": ("MLr² + 2dr", lambda r: M * L * r**2 + 2 * D * r, "lotr"),
    "FacT-TT": ("MLr² + 2dr", lambda r: M * L * r**2 + 2 * D * r, "fact_tt"),
    "FacT-TK": ("(2d + ML)r + r³", lambda r: (2 * D + M * L) * r + r**3, "fact_tk"),
    "LoRTA": ("(d + d/h + h + L + M)r", lambda r: (D + D // H + H + L + M) * r, "lorta"),
}
"""The formula as printed, its value at rank r, and our adapter with the same hyperparameters. The
paper calls LoRTA "Ours"."""

_PRINTED = {
    "LoRA": ("2.1M", "33M"),
    "LoReTTA": ("92k", "50M"),
    "LoTR": ("33k", "786k"),
    "FacT-TT": ("33k", "786k"),
    "FacT-TK": ("33k", "790k"),
    "LoRTA": ("17k", "274k"),
}
"""The numbers as printed, at each of the ranks."""


@dataclass(frozen=True)
class Table1Row:
    """One number of the table: the formula's value, the paper's print and whether they agree.

    `ours` is what our adapter counts; None where it has other hyperparameters.
    """

    method: str
    rank: int
    formula: str
    value: int
    printed: str
    ours: int | None
    verdict: str


def table1() -> Iterator[Table1Row]:
    """All twelve numbers, in the paper's order."""
    for method, (formula, value_at, kind) in _FORMULAS.items():
        for rank, printed in zip(_RANKS, _PRINTED[method], strict=True):
            value, ours = value_at(rank), None
            if kind is not None:
                config = AdapterConfig(kind=kind, rank=rank, targets=TARGETS)
                ours = count(LLAMA2_7B, config).trainable
            verdict = "; ".join(_verdict(method, rank, value, printed))
            yield Table1Row(method, rank, formula, value, printed, ours, verdict)


def shortened(value: int, printed: str) -> list[str]:
    """How a number can be shortened to a print such as "2.1M": rounded, truncated, both or neither.

    The last digit of the print is its precision.
    """
    number, unit = printed[:-1], _UNITS[printed[-1]]
    digits = len(number.partition(".")[2])
    last, shown = unit // 10**digits, int(number.replace(".", ""))
    ways = {"rounded": (2 * value + last) // (2 * last), "truncated": value // last}
    return [way for way, result in ways.items() if result == shown]


def _verdict(method: str, rank: int, value: int, printed: str) -> Iterator[str]:
    ways = shortened(value, printed)
    if len(ways) == 2:
        yield "agrees"
    elif ways:
        yield f"agrees, {ways[0]}"
    else:
        number = float(printed[:-1]) * _UNITS[printed[-1]]
        yield f"disagrees: {printed} is {number / value:.1f} times the formula"
    if method == "LoReTTA":
        modes = LORETTA_MODES[rank]
        if prod(modes) != D * rank:
            yield f"the product of k is {prod(modes):,}, not dr = {D * rank:,}"
        yield "ours has rank and TT-rank as two settings"
