"""The pairs of atoms whose distance is preserved: all pairs counted, or only the near ones."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int8, Int64
from torch import Tensor

from esmfold_peft.geometry.distances import pairwise_distances

THRESHOLDS = (0.5, 1.0, 2.0, 4.0)
"""A pair of atoms is preserved at each of these deviations of its distance, in Å."""

_SLACK = 1.01
"""Pairs up to this multiple of the cutoff are computed exactly, to allow for earlier rounding."""

_PAIR_BITS = 32
_PAIR = np.int64(2**_PAIR_BITS)
"""A number for a pair that counts; its lower bits hold how many thresholds the pair keeps."""

_SINGLE = 400
"""Single precision finds these pairs if no point is farther from the center than the square root of
this times the cutoff (300 Å). Squared distances are then right to 0.2 Å²; `_SLACK` allows 4.5."""


@dataclass(frozen=True, eq=False)
class Atoms:
    """Atoms in both structures.

    Attributes:
        predicted: Å.
        true: Å; anything where not known.
        known: present in the reference.
        found: present in the prediction.
        residue: atoms of one residue make no pair.
    """

    predicted: Float[Tensor, "b p 3"]
    true: Float[Tensor, "b p 3"]
    known: Bool[Tensor, "b p"]
    found: Bool[Tensor, "b p"]
    residue: Int[Tensor, "b p"]

    def rows(self, first: int, end: int) -> "Atoms":
        """A range of the atoms of every chain."""
        return Atoms(*(getattr(self, field.name)[:, first:end] for field in fields(self)))


def tally(
    rows: Atoms, columns: Atoms, cutoff: float
) -> tuple[Float[Tensor, "b r"], Int[Tensor, "b r"]]:
    """For every row, its score summed over its pairs with the columns, and the number of pairs.

    This is the definition of the score. It keeps all pairs in memory and waits for no device.
    """
    true_distance = pairwise_distances(rows.true, columns.true)
    counted = rows.known[:, :, None] & columns.known[:, None] & (true_distance <= cutoff)
    counted &= rows.residue[:, :, None] != columns.residue[:, None]
    found = counted & rows.found[:, :, None] & columns.found[:, None]
    deviation = (pairwise_distances(rows.predicted, columns.predicted) - true_distance).abs()
    # Numbers of one byte until they are summed: on a CPU sums of bool or int64 take half the time.
    preserved = (deviation <= THRESHOLDS[0]).to(torch.int8)
    for threshold in THRESHOLDS[1:]:
        preserved += deviation <= threshold
    preserved *= found
    kept, pairs = (x.to(deviation.dtype).sum(-1) for x in (preserved, counted))
    return kept / len(THRESHOLDS), pairs.long()


def tally_in_rows(
    atoms: Atoms,
    rows: Bool[Tensor, "b p"],
    columns: Bool[Tensor, "b p"],
    cutoff: float,
    block: int,
) -> tuple[Float[Tensor, "b p"], Int[Tensor, "b p"]]:
    """`tally` of some atoms with some, about `block` pairs at a time; 0 in other rows."""
    batch, count = atoms.known.shape
    size = max(1, block // max(1, batch * count))
    left, right = replace(atoms, known=rows), replace(atoms, known=columns)
    starts = range(0, count, size)
    parts = [tally(left.rows(first, first + size), right, cutoff) for first in starts]
    kept, pairs = zip(*parts, strict=True)
    return torch.cat(kept, -1), torch.cat(pairs, -1)


def tally_near(
    atoms: Atoms,
    rows: Bool[Tensor, "b p"],
    columns: Bool[Tensor, "b p"] | None,
    cutoff: float,
    block: int,
) -> tuple[Float[Tensor, "b p"], Int[Tensor, "b p"]]:
    """The same numbers as `tally_in_rows`, from a list of the pairs that are near.

    Faster on a CPU, where most of the time of `tally` goes into pairs that do not count. With
    columns None the rows are paired among themselves, each pair once.
    """
    # Both numbers of an atom in one: two sums would take twice as long.
    tallies = torch.zeros(rows.shape, dtype=torch.long)
    finite = atoms.true.isfinite().all(-1)
    # No distance from an atom at NaN is preserved.
    predicted = torch.where(atoms.found[..., None], atoms.predicted, torch.nan)
    for chain in range(len(rows)):
        points = atoms.true[chain].double().numpy()
        both = torch.cat((atoms.true[chain], predicted[chain]), -1)
        both = both.to(torch.promote_types(both.dtype, torch.float32)).numpy()
        residue = atoms.residue[chain].numpy()
        mine = (rows & finite)[chain].numpy().nonzero()[0]
        others = None if columns is None else (columns & finite)[chain].numpy().nonzero()[0]
        for i, j in _near(points, mine, others, cutoff, block):
            preserved, counted = _scores(both, residue, i, j, cutoff)
            score = torch.from_numpy(counted * _PAIR + preserved)
            for ends in (i,) if columns is not None else (i, j):
                tallies[chain].index_add_(0, torch.from_numpy(ends), score)
    pairs = tallies >> _PAIR_BITS
    kept = (tallies - (pairs << _PAIR_BITS)).to(atoms.true.dtype)
    return kept / len(THRESHOLDS), pairs


def _scores(
    both: Float[np.ndarray, "p 6"],
    residue: Int64[np.ndarray, "p"],
    i: Int64[np.ndarray, "m"],
    j: Int64[np.ndarray, "m"],
    cutoff: float,
) -> tuple[Int8[np.ndarray, "m"], Int8[np.ndarray, "m"]]:
    """For pairs i, j, the thresholds kept (0 to 4) and whether they count (0 or 1)."""
    # One look-up for both structures, whose coordinates are next to each other.
    squares = both.take(i, 0)
    with np.errstate(over="ignore", invalid="ignore"):  # places far away or not finite
        squares -= both.take(j, 0)
        squares *= squares
        squares = squares.reshape(-1, 2, 3)
        true, predicted = np.sqrt(squares[:, :, 0] + squares[:, :, 1] + squares[:, :, 2]).T
        deviation = np.abs(predicted - true)
    counted = true <= cutoff
    counted &= residue.take(i) != residue.take(j)
    # Numbers of one byte: sums of doubles take several times as long.
    preserved = (deviation <= THRESHOLDS[0]).view(np.int8)
    for threshold in THRESHOLDS[1:]:
        preserved += (deviation <= threshold).view(np.int8)
    counted = counted.view(np.int8)
    preserved *= counted
    return preserved, counted


def _near(
    points: Float64[np.ndarray, "p 3"],
    rows: Int64[np.ndarray, "r"],
    columns: Int64[np.ndarray, "c"] | None,
    cutoff: float,
    block: int,
) -> Iterator[tuple[Int64[np.ndarray, "m"], Int64[np.ndarray, "m"]]]:
    """Pairs of a row and a column that may be within the cutoff, and few others."""
    # In NumPy, which compares and lists several times as fast as torch does on a CPU.
    reach = _SLACK * cutoff
    partners = rows if columns is None else columns
    size = max(1, block // max(1, len(partners)))
    for first in range(0, len(rows), size):
        mine = rows[first : first + size]
        others = rows[first:] if columns is None else columns
        center = points[mine].mean(0)
        a, b = points[mine] - center, points[others] - center
        if len(mine) < len(others):
            close = np.linalg.norm(b, axis=-1) <= np.linalg.norm(a, axis=-1).max() + reach
            others, b = others[close], b[close]
        near = _squared_distances(a, b, single_below=_SINGLE * reach**2) <= reach**2
        if columns is None:
            near[:, : len(mine)] &= ~np.tri(len(mine), dtype=bool)
        place = np.flatnonzero(near)
        row = place // max(1, len(others))
        yield mine[row], others[place - row * len(others)]


def _squared_distances(
    points: Float64[np.ndarray, "r 3"], others: Float64[np.ndarray, "c 3"], *, single_below: float
) -> Float[np.ndarray, "r c"]:
    """By one product of matrices: fast, and right to some ten roundings of the squared points."""
    norms, other_norms = ((x * x).sum(-1) for x in (points, others))
    largest = max(norms.max(initial=0), other_norms.max(initial=0))
    kind = np.float32 if largest < single_below else np.float64
    left, right = np.ones((len(points), 5), kind), np.ones((5, len(others)), kind)
    left[:, :3] = -2 * points
    left[:, 3] = norms
    right[:3] = others.T
    right[4] = other_norms
    return left @ right
