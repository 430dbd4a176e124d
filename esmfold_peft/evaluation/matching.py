"""Which residue of a prediction stands for which residue of the reference."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64

from esmfold_peft.config import MatchMethod
from esmfold_peft.errors import UserError
from esmfold_peft.evaluation.alignment import align, shown_alignment
from esmfold_peft.evaluation.chain import Chain
from esmfold_peft.protein.residues import UNKNOWN, encode

LEAST_IDENTITY = 0.9
"""Share of aligned residues with equal letters below which two chains are not the same protein."""

_LEAST_ALIGNED = 10

_FARTHEST = 100_000
"""Places in a sequence; a number beyond is damage, and would take as much memory."""

Method = Literal["sequence", "number", "alignment"]


class SequenceMismatchError(UserError):
    """The sequences of a prediction and of its reference do not fit together.

    Attributes:
        alignment: lines that show where.
    """

    def __init__(self, reason: str, reference: Chain, predicted: Chain) -> None:
        super().__init__(reason)
        self.alignment = shown_alignment(reference.sequence, predicted.sequence)


@dataclass(frozen=True, eq=False)
class Residues:
    """The residues of a prediction in the order of the reference's.

    Attributes:
        places: row in the prediction of each residue of the reference; -1 if it has none.
        method: how they were found.
        identity: share of the matched residues whose letters agree; X agrees with any.
        note: what else is to be known; "" if nothing.
    """

    places: Int64[np.ndarray, "n"]
    method: Method
    identity: float
    note: str = ""


def match_residues(reference: Chain, predicted: Chain, method: MatchMethod = "auto") -> Residues:
    """Matches residues, and refuses what is not the same protein.

    - `sequence`: equal sequences, residue by residue; otherwise by the place in the deposited
      sequence (the prediction's number, or its label_seq_id), if every residue of the prediction
      has one in the reference and its letter; otherwise a prediction of exactly the residues that
      the reference resolves.
    - `number`: by the author's residue number and insertion code. Letters must agree wherever both
      have a residue of a number.
    - `alignment`: the numbers of the prediction, counted from elsewhere, where its letters then all
      agree (the first place where they do, in repeats); otherwise global alignment, to the residues
      that the reference resolves unless more letters agree with all of its residues. At least half
      of the shorter chain, and ten of its residues (or all), must be aligned, and 90 % of those
      have equal letters. The others are scored by the atoms of equal names.
    - `auto`: equal sequences; then numbers, if every residue of the prediction has the number and
      letter of one in the reference; then the other ways of `sequence`; then numbers if half of
      the residues of the shorter chain share one; then alignment.

    Args:
        reference: the true chain.
        predicted: the chain that is scored.
        method: what is tried.

    Raises:
        SequenceMismatchError: the letters do not agree.
    """
    if method == "number":
        return _checked("number", _by_number(reference, predicted), reference, predicted)
    if method in ("sequence", "auto"):
        for found in _candidates(reference, predicted, numbers=method == "auto"):
            if found is not None:
                return found
    if method == "sequence":
        reason = f"not the reference's sequence: {_difference(reference, predicted)}"
        raise SequenceMismatchError(reason, reference, predicted)
    return _by_alignment(reference, predicted)


def _candidates(reference: Chain, predicted: Chain, *, numbers: bool) -> Iterator[Residues | None]:
    """The ways that need no alignment, surest first; None for one that does not fit."""
    yield _equal(reference, predicted)
    shared = _shared_numbers(reference, predicted) if numbers else None
    if shared is not None and (shared.places >= 0).sum() == len(predicted):
        yield shared
    yield _by_place(reference, predicted, _numbers_as_places(predicted))
    found = _by_place(reference, predicted, predicted.residue_index.tolist())
    # An index from 0 on may be the author's numbers less the first, which say no place.
    if found is not None and predicted.residue_index.min() == 0:
        found = _noted(found, _first_shifts(reference, predicted))
    yield found
    yield _resolved_only(reference, predicted)
    yield shared


def _equal(reference: Chain, predicted: Chain) -> Residues | None:
    if not _same(reference.sequence, predicted.sequence):
        return None
    return Residues(np.arange(len(reference)), "sequence", 1.0)


def _numbers_as_places(predicted: Chain) -> list[int]:
    """0-based places that a chain's numbers are if they count the deposited sequence."""
    return [int(n) - 1 if n.lstrip("-").isdecimal() else -1 for n in predicted.numbers]


def _by_place(reference: Chain, predicted: Chain, index: list[int]) -> Residues | None:
    places = _joined(reference.residue_index.tolist(), index)
    if (places >= 0).sum() < len(predicted):
        return None
    agrees = _agrees(places, reference, predicted).all()
    return Residues(places, "sequence", 1.0) if agrees else None


def _resolved_only(reference: Chain, predicted: Chain) -> Residues | None:
    rows = np.flatnonzero(reference.modelled)
    if not _same("".join(reference.sequence[k] for k in rows), predicted.sequence):
        return None
    places = np.full(len(reference), -1, dtype=np.int64)
    places[rows] = np.arange(len(rows))
    return Residues(places, "sequence", 1.0)


def _shared_numbers(reference: Chain, predicted: Chain) -> Residues | None:
    places = _by_number(reference, predicted)
    shared = int((places >= 0).sum())
    if not shared or 2 * shared < min(reference.modelled.sum(), predicted.modelled.sum()):
        return None
    agrees = _agrees(places, reference, predicted).all()
    return Residues(places, "number", 1.0) if agrees else None


def _by_number(reference: Chain, predicted: Chain) -> Int64[np.ndarray, "n"]:
    # Some programs write insertion codes as small letters.
    one, other = ([n.upper() for n in chain.numbers] for chain in (reference, predicted))
    return _joined(one, other)


def _by_alignment(reference: Chain, predicted: Chain) -> Residues:
    fits = _first_shifts(reference, predicted)
    places = fits[0] if fits else _aligned(reference, predicted)
    return _noted(_checked("alignment", places, reference, predicted), fits)


def _noted(found: Residues, fits: list[Int64[np.ndarray, "n"]]) -> Residues:
    several = "several placements fit, the first is scored"
    return replace(found, note=several) if len(fits) > 1 else found


def _first_shifts(reference: Chain, predicted: Chain) -> list[Int64[np.ndarray, "n"]]:
    return list(islice(_shifted(reference, predicted), 2))


def _aligned(reference: Chain, predicted: Chain) -> Int64[np.ndarray, "n"]:
    """Alignment to the resolved residues where it explains as many letters as one to them all.

    A residue beside a gap often fits on both of its sides, of which one may have no coordinates.
    """
    places = align(reference.sequence, predicted.sequence)
    rows = np.flatnonzero(reference.modelled)
    if not len(rows):
        return places
    inner = np.full(len(reference), -1, dtype=np.int64)
    inner[rows] = align("".join(reference.sequence[k] for k in rows), predicted.sequence)
    letters = [_agrees(found, reference, predicted).sum() for found in (inner, places)]
    return inner if letters[0] >= letters[1] else places


def _shifted(reference: Chain, predicted: Chain) -> Iterator[Int64[np.ndarray, "n"]]:
    """Places if numbers that count from elsewhere explain all letters; they know where gaps are."""
    true, letters = (encode(chain.sequence) for chain in (reference, predicted))
    first, last = int(predicted.residue_index.min()), int(predicted.residue_index.max())
    if reference.residue_index.max() > _FARTHEST:
        return
    rows = np.full(int(reference.residue_index.max()) + 1, -1, dtype=np.int64)
    rows[reference.residue_index] = np.arange(len(reference))
    for shift in range(-first, len(rows) - last):
        found = rows[predicted.residue_index + shift]
        agree = (true[found] == letters) | (true[found] == UNKNOWN) | (letters == UNKNOWN)
        if (agree & (found >= 0)).all():
            places = np.full(len(reference), -1, dtype=np.int64)
            places[found] = np.arange(len(predicted))
            yield places


def _checked(
    method: Method, places: Int64[np.ndarray, "n"], reference: Chain, predicted: Chain
) -> Residues:
    """Residues that were matched, if their letters bear it out."""
    agrees = _agrees(places, reference, predicted)
    shared, identity = len(agrees), float(agrees.mean()) if len(agrees) else 0.0
    if method == "number":
        fits, what = shared > 0 and identity == 1, "of the residues with equal numbers"
    else:
        shorter = min(len(reference), len(predicted))
        least = max(shorter / 2, min(_LEAST_ALIGNED, shorter))
        fits, what = shared >= least and identity >= LEAST_IDENTITY, "aligned residues"
    if not fits:
        reason = (
            f"not the reference's sequence: {int(agrees.sum())} of {shared} {what} agree;"
            f" {_difference(reference, predicted)}"
        )
        raise SequenceMismatchError(reason, reference, predicted)
    return Residues(places, method, identity)


def _joined(reference: list | tuple, predicted: list | tuple) -> Int64[np.ndarray, "n"]:
    """Rows of the prediction that have the keys of the reference, of equal ones the first."""
    rows = {key: row for row, key in reversed(list(enumerate(predicted))) if key != ""}
    return np.array([rows.get(key, -1) for key in reference], dtype=np.int64)


def _same(one: str, other: str) -> bool:
    return len(one) == len(other) and bool(_equal_letters(one, other).all())


def _agrees(
    places: Int64[np.ndarray, "n"], reference: Chain, predicted: Chain
) -> Bool[np.ndarray, "m"]:
    """Whether the letters of the residues that were matched are equal."""
    rows = np.flatnonzero(places >= 0)
    one = "".join(reference.sequence[k] for k in rows)
    return _equal_letters(one, "".join(predicted.sequence[k] for k in places[rows]))


def _equal_letters(one: str, other: str) -> Bool[np.ndarray, "m"]:
    return np.array([a == b or "X" in (a, b) for a, b in zip(one, other, strict=True)], dtype=bool)


def _difference(reference: Chain, predicted: Chain) -> str:
    if len(reference) != len(predicted):
        return f"{len(predicted)} residues instead of {len(reference)}"
    equal = _equal_letters(reference.sequence, predicted.sequence)
    if equal.all():
        return "the sequences are equal, the numbers are not"
    first = int(equal.argmin())
    found, expected = predicted.sequence[first], reference.sequence[first]
    return f"they differ first at residue {first + 1} ({found} instead of {expected})"
