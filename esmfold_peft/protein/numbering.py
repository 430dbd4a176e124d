"""Places of residues in a chain whose sequence the file does not state.

The numbers say where residues are missing, and so does the distance from C to the next N. Where
the two disagree, the distance decides: numbering schemes skip numbers in unbroken chains, and
programs number residues one after the other across gaps.
"""

from itertools import pairwise

import gemmi
import numpy as np
from jaxtyping import Int32

_BONDED = (0.8, 2.0)
"""Å from C to N; 1.33 in a good structure. Below, the coordinates are placeholders."""

_BROKEN = 3.0
"""Å from C to N beyond which no bond is left, if Cα are farther apart than `_BROKEN_CA` too."""

_BONDED_CA = (2.5, 4.2)
"""Å between neighbouring Cα: 3.8, or 2.9 before a cis proline."""

_BROKEN_CA = 5.0


def is_bonded(one: gemmi.Residue, other: gemmi.Residue) -> bool | None:
    """Whether a peptide bond joins two residues; None where the atoms do not decide it."""
    ca = _distance(one, "CA", other, "CA")
    bond = _distance(one, "C", other, "N")
    if bond is None:
        if ca is None:
            return None
        bonded, broken = _BONDED_CA[0] <= ca <= _BONDED_CA[1], ca > _BROKEN_CA
    else:
        bonded = _BONDED[0] <= bond <= _BONDED[1]
        broken = bond > _BROKEN and (ca is None or ca > _BROKEN_CA)
    return True if bonded else False if broken else None


def places(residues: list[gemmi.Residue]) -> tuple[Int32[np.ndarray, "n"], list[int]]:
    """Numbers at least one residue from the file's numbers and the distances between neighbours.

    Returns 0-based places, and the rows before which the chain is broken though its numbers run on.
    """
    labels = [residue.label_seq or 0 for residue in residues]
    labelled = labels[0] >= 1 and all(a < b for a, b in pairwise(labels))
    steps, hidden = [labels[0] - 1 if labelled else 0], []
    for row in range(1, len(residues)):
        one, other = residues[row - 1], residues[row]
        by_author = max(1, _number(other)[0] - _number(one)[0])
        step = labels[row] - labels[row - 1] if labelled else by_author
        bonded = is_bonded(one, other)
        if bonded:
            step = 1
        elif step == 1 and (
            bonded is False or (by_author > 1 and (_distance(one, "C", other, "N") or 0) > _BROKEN)
        ):
            step = max(by_author, 2)
            hidden += [row] if by_author < 2 else []
        steps.append(step)
    index = np.cumsum(np.array(steps, dtype=np.int64))
    if index[-1] > np.iinfo(np.int32).max:  # numbers so far apart are damage
        index = np.cumsum(np.minimum(steps, 2))
    return index.astype(np.int32), hidden


def increases(one: gemmi.Residue, other: gemmi.Residue) -> bool:
    """Whether the author's number, with its insertion code, is higher in the second residue."""
    return _number(one) < _number(other)


def _number(residue: gemmi.Residue) -> tuple[int, str]:
    return residue.seqid.num or 0, residue.seqid.icode


def _distance(one: gemmi.Residue, name: str, other: gemmi.Residue, name_there: str) -> float | None:
    first, second = one.find_atom(name, "*"), other.find_atom(name_there, "*")
    return first.pos.dist(second.pos) if first and second else None
