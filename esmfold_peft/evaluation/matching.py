"""Which residue of a prediction belongs to which residue of the reference."""

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
"""Largest place in a sequence; a larger one is damage, and would take as much memory."""

Method = Literal["sequence", "number", "alignment"]


class SequenceMismatchError(UserError):
    """A prediction has another sequence than its reference; `alignment` has lines that show it."""

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
        note: what a reader of the scores should know; "" if nothing.
    """

    places: Int64[np.ndarray, "n"]
    method: Method
    identity: float
    note: str = ""


def match_residues(reference: Chain, predicted: Chain, method: MatchMethod = "auto") -> Residues:
    """Matches residues by the first way of a method that fits; refuses another protein.

    - `sequence`: equal sequences, residue by residue; or by the place in the deposited sequence
      (the prediction's number, or its label_seq_id), if every residue of the prediction has the
      letter of the reference at its place; or a prediction of exactly the resolved residues.
    - `number`: by the author's residue number and insertion code. Letters must agree wherever both
      have a residue of a number.
    - `alignment`: the numbers of the prediction plus a constant, if all letters then agree (the
      first such constant, in repeats); or global alignment, to the residues that the reference
      resolves unless more letters agree with all of its residues. At least half of the shorter
      chain, and ten of its residues (or all), must be aligned, and 90 % of those must have equal
      letters. The others are scored by the atoms of equal names.
    - `auto`: equal sequences; then numbers, if every residue of the prediction has the number and
      letter of one in the reference; then the other ways of `sequence`; then numbers if half of
      the residues of the shorter chain share one; then alignment.

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
    """The ways without alignment, surest first; None for one that does not fit."""
    if _same(reference.sequence, predicted.sequence):
        yield Residues(np.arange(len(reference)), "sequence", 1.0)
    shared = _shared_numbers(reference, predicted) if numbers else None
    if shared is not None and (shared.places >= 0).sum() == len(predicted):
        yield shared
    # The numbers may count the deposited sequence from 1.
    counted = [int(n) - 1 if n.lstrip("-").isdecimal() else -1 for n in predicted.numbers]
    yield _by_place(reference, predicted, counted)
    found = _by_place(reference, predicted, predicted.residue_index.tolist())
    # An index from 0 may be the author's numbers minus the first, which are no places.
    if found is not None and predicted.residue_index.min() == 0:
        found = _noted(found, _first_shifts(reference, predicted))
    yield found
    rows = np.flatnonzero(reference.modelled)
    if _same(_letters(reference, rows), predicted.sequence):
        yield Residues(_spread(reference, rows, np.arange(len(rows))), "sequence", 1.0)
    yield shared


def _by_place(reference: Chain, predicted: Chain, index: list[int]) -> Residues | None:
    places = _joined(reference.residue_index.tolist(), index)
    if (places >= 0).sum() < len(predicted):
        return None
    agrees = _agrees(places, reference, predicted).all()
    return Residues(places, "sequence", 1.0) if agrees else None


def _shared_numbers(reference: Chain, predicted: Chain) -> Residues | None:
    places = _by_number(reference, predicted)
    shared = int((places >= 0).sum())
    if not shared or 2 * shared < min(reference.modelled.sum(), predicted.modelled.sum()):
        return None
    agrees = _agrees(places, reference, predicted).all()
    return Residues(places, "number", 1.0) if agrees else None


def _by_number(reference: Chain, predicted: Chain) -> Int64[np.ndarray, "n"]:
    # Some programs write insertion codes in lower case.
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
    """Alignment to the resolved residues if it explains as many letters as one to all residues.

    A residue next to a gap often fits on both sides, and one of these may have no coordinates.
    """
    places = align(reference.sequence, predicted.sequence)
    rows = np.flatnonzero(reference.modelled)
    if not len(rows):
        return places
    found = align(_letters(reference, rows), predicted.sequence)
    inner = _spread(reference, rows, found)
    letters = [_agrees(found, reference, predicted).sum() for found in (inner, places)]
    return inner if letters[0] >= letters[1] else places


def _shifted(reference: Chain, predicted: Chain) -> Iterator[Int64[np.ndarray, "n"]]:
    """Places for each constant that, added to the prediction's numbers, makes all letters agree."""
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
            yield _spread(reference, found, np.arange(len(predicted)))


def _checked(
    method: Method, places: Int64[np.ndarray, "n"], reference: Chain, predicted: Chain
) -> Residues:
    """Matched residues, if enough of their letters agree."""
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


def _spread(
    reference: Chain, rows: Int64[np.ndarray, "m"], found: Int64[np.ndarray, "m"]
) -> Int64[np.ndarray, "n"]:
    """Places of the residues in some rows of the reference; -1 in the others."""
    places = np.full(len(reference), -1, dtype=np.int64)
    places[rows] = found
    return places


def _letters(chain: Chain, rows: Int64[np.ndarray, "m"]) -> str:
    return "".join(chain.sequence[k] for k in rows)


def _same(one: str, other: str) -> bool:
    return len(one) == len(other) and bool(_equal_letters(one, other).all())


def _agrees(
    places: Int64[np.ndarray, "n"], reference: Chain, predicted: Chain
) -> Bool[np.ndarray, "m"]:
    """Whether the letters of the matched residues are equal."""
    rows = np.flatnonzero(places >= 0)
    return _equal_letters(_letters(reference, rows), _letters(predicted, places[rows]))


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
