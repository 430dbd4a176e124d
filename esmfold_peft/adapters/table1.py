"""Table 1 of the LoRTA paper (arXiv 2410.04060): parameters on Llama2-7B, checked.

Every printed number stands beside what the formula in the same row gives, and beside what this
project's adapter of that method counts at the same sizes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.count import count
from esmfold_peft.config import AdapterConfig, AdapterKind, Target

LLAMA2_7B = AttentionShape(layers=32, width=4096, heads=32)
TARGETS: tuple[Target, ...] = ("query", "value")

L, D, H, M = LLAMA2_7B.layers, LLAMA2_7B.width, LLAMA2_7B.heads, len(TARGETS)

LORETTA_MODES = {4: (5,) * 6, 64: (64,) * 3}
"""LoReTTA's k_i by rank, from the caption, which asks that their product be d·r."""

_UNITS = {"k": 10**3, "M": 10**6}


@dataclass(frozen=True)
class _Method:
    """One row of the table.

    Attributes:
        name: as printed; the paper calls LoRTA "Ours".
        formula: as printed.
        value: of the formula at rank r.
        printed: by rank.
        kind: our adapter with the same hyperparameters.
    """

    name: str
    formula: str
    value: Callable[[int], int]
    printed: dict[int, str]
    kind: AdapterKind | None


_METHODS = (
    _Method("LoRA", "2MLdr", lambda r: 2 * M * L * D * r, {4: "2.1M", 64: "33M"}, "lora"),
    _Method(
        "LoReTTA",
        "MLr² Σk",
        lambda r: M * L * r**2 * sum(LORETTA_MODES[r]),
        {4: "92k", 64: "50M"},
        None,
    ),
    _Method(
        "LoTR",
        "MLr² + 2dr",
        lambda r: M * L * r**2 + 2 * D * r,
        {4: "33k", 64: "786k"},
        "lotr",
    ),
    _Method(
        "FacT-TT",
        "MLr² + 2dr",
        lambda r: M * L * r**2 + 2 * D * r,
        {4: "33k", 64: "786k"},
        "fact_tt",
    ),
    _Method(
        "FacT-TK",
        "(2d + ML)r + r³",
        lambda r: (2 * D + M * L) * r + r**3,
        {4: "33k", 64: "790k"},
        "fact_tk",
    ),
    _Method(
        "LoRTA",
        "(d + d/h + h + L + M)r",
        lambda r: (D + D // H + H + L + M) * r,
        {4: "17k", 64: "274k"},
        "lorta",
    ),
)


@dataclass(frozen=True)
class Table1Row:
    """One number of the table.

    Attributes:
        method: its name.
        rank: r.
        formula: as printed.
        value: what the formula gives.
        printed: what the paper prints.
        ours: what our adapter counts; None where its hyperparameters are others.
        verdict: whether formula and print agree, and how.
    """

    method: str
    rank: int
    formula: str
    value: int
    printed: str
    ours: int | None
    verdict: str


def table1() -> list[Table1Row]:
    """All twelve numbers, in the paper's order."""
    return [_row(method, rank) for method in _METHODS for rank in method.printed]


def shortened(value: int, printed: str) -> list[str]:
    """How a number can be shortened to what is printed: rounded, truncated, both or neither.

    Args:
        value: the exact number.
        printed: such as "2.1M" or "33k"; its last digit is the precision.
    """
    number, unit = printed[:-1], _UNITS[printed[-1]]
    digits = len(number.partition(".")[2])
    last, shown = unit // 10**digits, int(number.replace(".", ""))
    ways = {"rounded": (2 * value + last) // (2 * last), "truncated": value // last}
    return [way for way, result in ways.items() if result == shown]


def _row(method: _Method, rank: int) -> Table1Row:
    value, printed = method.value(rank), method.printed[rank]
    ours = None
    if method.kind is not None:
        config = AdapterConfig(kind=method.kind, rank=rank, targets=TARGETS)
        ours = count(LLAMA2_7B, config).trainable
    verdict = "; ".join(_verdict(method, rank, value, printed))
    return Table1Row(method.name, rank, method.formula, value, printed, ours, verdict)


def _verdict(method: _Method, rank: int, value: int, printed: str) -> Iterator[str]:
    ways = shortened(value, printed)
    if len(ways) == 2:
        yield "agrees"
    elif ways:
        yield f"agrees, {ways[0]}"
    else:
        number = float(printed[:-1]) * _UNITS[printed[-1]]
        yield f"disagrees: {printed} is {number / value:.1f} times the formula"
    if method.name == "LoReTTA":
        modes = LORETTA_MODES[rank]
        if prod(modes) != D * rank:
            yield f"the product of k is {prod(modes):,}, not dr = {D * rank:,}"
        yield "ours has rank and TT-rank as two settings"
