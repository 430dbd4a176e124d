"""Ubiquitin, its pieces in tests/cases, and PDB files made of it by editing lines."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from esmfold_peft.protein.read import parse_chains, read_chains
from esmfold_peft.protein.residues import ATOM37_INDEX
from esmfold_peft.protein.structure import ProteinStructure

CASES = Path(__file__).parents[1] / "cases"

SEQUENCE = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"

N30, SECOND30 = SEQUENCE[:30], SEQUENCE[30:60]

CA = ATOM37_INDEX["CA"]


def gaps(chain: ProteinStructure) -> list[tuple[int, int]]:
    """Rows before which numbers are missing, and how many."""
    steps = np.diff(chain.residue_index)
    return [(int(row) + 1, int(steps[row]) - 1) for row in np.flatnonzero(steps != 1)]


def true_positions() -> np.ndarray:
    return read_chains(CASES / "reference.pdb")[0].positions


PLAIN = [
    line for line in (CASES / "reference.pdb").read_text().splitlines() if line.startswith("ATOM")
]


def number(line: str) -> int:
    return int(line[22:26])


def edited(
    change: Callable[[str], str | None], after: dict[int, list[str]] | None = None
) -> Iterator[str]:
    """The lines, each changed, and more behind residues of some numbers."""
    for line, following in zip(PLAIN, [*PLAIN[1:], ""], strict=True):
        if (changed := change(line)) is not None:
            yield changed
        if not following or number(following) != number(line):
            yield from (after or {}).get(number(line), [])


def read_pdb(lines: Iterator[str] | list[str], **flags: bool) -> list[ProteinStructure]:
    return parse_chains(("\n".join(lines) + "\nEND\n").encode(), "x.pdb", **flags)


def same(line: str) -> str:
    return line


def placed(
    line: str, *, name: str | None = None, chain: str = "A", serial: int | None = None
) -> str:
    """A line under another name of the residue (four columns), chain or number."""
    name = line[17:20] + " " if name is None else f"{name:<4}"
    new = f"{number(line) if serial is None else serial:4d}"
    return f"{line[:17]}{name}{chain}{new}{line[26:]}"


WATER = "HETATM 9999  O   {} A{:4d}      40.000  40.000  20.000  1.00 20.00           O"
