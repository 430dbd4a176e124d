"""Scores that need a superposition: RMSD, GDT-TS, GDT-HA and TM-score."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64

from esmfold_peft.geometry.rigid import rotation_from_quaternion

GDT_TS = (1.0, 2.0, 4.0, 8.0)
"""Distances of the global distance test (total score), in Å."""

GDT_HA = (0.5, 1.0, 2.0, 4.0)
"""Distances of the global distance test (high accuracy), in Å."""

_CUTOFFS = sorted({*GDT_TS, *GDT_HA})

_FEWEST = 3
"""Residues; fewer points can be superposed in many ways."""

_FARTHEST = 1e6
"""Å; a residue beyond it counts as missing, as in the reader of files. Squared distances are right
to about 1e-15 of the squared coordinates."""

_LEVELS, _SHORTEST, _ROUNDS = 6, 4, 20
"""The search of the TMscore program: lengths of the first fragments (all residues, a half, a
quarter, ..., at last four), and how often a superposition is repeated on the residues it brings
near."""

_BATCH = 2**20
"""Distances in a batch of superpositions: 8 MB. In smaller batches more of them are repeated."""


@dataclass(frozen=True)
class Superposition:
    """Scores of one prediction; NaN where fewer than three residues of the reference are resolved.

    Attributes:
        rmsd: smallest possible, of the residues in both, in Å; NaN if these are fewer than three.
        gdt_ts: share of the residues within 1, 2, 4 and 8 Å, each in the best superposition found
            for it; mean of the four, 0 to 1.
        gdt_ha: the same for 0.5, 1, 2 and 4 Å.
        tm_score: TM-score, 0 to 1.
    """

    rmsd: float
    gdt_ts: float
    gdt_ha: float
    tm_score: float


def superposition_scores(
    predicted: Float[np.ndarray, "n 3"],
    true: Float[np.ndarray, "n 3"],
    mask: Bool[np.ndarray, "n"],
    found: Bool[np.ndarray, "n"],
) -> Superposition:
    """Scores the Cα of one prediction whose residues are those of the reference, in order.

    GDT and TM-score are what the TMscore program prints (Zhang and Skolnick 2004), by the same
    search: it superposes fragments, then repeatedly the residues that this brings near. It is
    heuristic and may miss the best superposition. All resolved residues of the reference count:
    residues missing from the prediction score 0. A prediction with fewer than three of them scores
    0. Computed in float64; memory grows with n, not with its square.

    Args:
        predicted: Cα of the prediction in Å; one that is not finite, or beyond a million Å, counts
            as missing.
        true: Cα of the reference in Å; anything where masked.
        mask: residues resolved in the reference.
        found: residues present in the prediction.
    """
    predicted, true = predicted.astype(np.float64), true.astype(np.float64)
    resolved = mask & _placed(true)
    length = int(resolved.sum())
    if length < _FEWEST:
        return Superposition(math.nan, math.nan, math.nan, math.nan)
    common = resolved & found & _placed(predicted)
    if common.sum() < _FEWEST:
        return Superposition(math.nan, 0.0, 0.0, 0.0)
    pairs = _Pairs(predicted[common], true[common])
    within, tm_sum = _search(pairs, tm_scale(length))
    gdt_ts, gdt_ha = (
        sum(within[cutoff] for cutoff in cutoffs) / (len(cutoffs) * length)
        for cutoffs in (GDT_TS, GDT_HA)
    )
    return Superposition(pairs.rmsd(), gdt_ts, gdt_ha, tm_sum / length)


def tm_scale(length: int) -> float:
    """d0 of the TM-score of a chain in Å: a residue that is this far off counts half."""
    # Below 22 residues the formula gives less than the 0.5 Å at which the program stops.
    return max(0.5, 1.24 * max(length - 15, 0) ** (1 / 3) - 1.8)


def _placed(points: Float64[np.ndarray, "n 3"]) -> Bool[np.ndarray, "n"]:
    """Points with usable coordinates; not those with NaN."""
    return np.all(np.abs(points) < _FARTHEST, axis=-1)


def _search(pairs: "_Pairs", scale: float) -> tuple[dict[float, int], float]:
    """The most residues within each distance, and the largest sum of TM-score, of all tried."""
    within = dict.fromkeys(_CUTOFFS, 0)
    tm_sum = 0.0
    for squares in _tried(pairs, reach=min(max(scale, 4.5), 8.0)):
        for cutoff in _CUTOFFS:
            inside = np.count_nonzero(squares <= cutoff**2, axis=1)
            within[cutoff] = max(within[cutoff], int(inside.max()))
        terms = squares / scale**2
        terms += 1
        np.reciprocal(terms, out=terms)
        tm_sum = max(tm_sum, float(terms.sum(1).max()))
    return within, tm_sum


def _tried(pairs: "_Pairs", reach: float) -> Iterator[Float64[np.ndarray, "s n"]]:
    """Squared distances in every superposition of the search, in batches."""
    for chosen in _fragments(pairs.count):
        squares = pairs.squares(chosen)
        yield squares
        chosen = _different(_nearby(squares, reach - 1))
        for _ in range(_ROUNDS):
            squares = pairs.squares(chosen)
            yield squares
            nearby = _nearby(squares, reach + 1)
            chosen = _different(nearby[(nearby != chosen).any(1)])
            if not len(chosen):
                break


def _fragments(count: int) -> Iterator[Bool[np.ndarray, "s n"]]:
    """The residues of every fragment that the search begins with, in batches."""
    shortest = min(_SHORTEST, count)
    lengths = [count // 2**level for level in range(_LEVELS - 1)]
    lengths = [length for length in lengths if length > shortest] + [shortest]
    starts = np.concatenate([np.arange(count - length + 1) for length in lengths])
    ends = starts + np.repeat(lengths, [count - length + 1 for length in lengths])
    place, size = np.arange(count), max(1, _BATCH // count)
    for first in range(0, len(starts), size):
        batch = slice(first, first + size)
        yield (place >= starts[batch, None]) & (place < ends[batch, None])


def _nearby(squares: Float64[np.ndarray, "s n"], reach: float) -> Bool[np.ndarray, "s n"]:
    """Residues nearer than `reach`, which grows in steps of 0.5 Å until there are three.

    It does not grow for a chain of three, as in the program.
    """
    nearby = squares < reach**2
    if squares.shape[1] > _FEWEST:
        few = np.flatnonzero(np.count_nonzero(nearby, axis=1) < _FEWEST)
        third = np.sqrt(np.partition(squares[few], _FEWEST - 1, axis=1)[:, _FEWEST - 1])
        grown = reach + 0.5 * (np.floor((third - reach) / 0.5) + 1)
        nearby[few] = squares[few] < (grown**2)[:, None]
    return nearby


def _different(chosen: Bool[np.ndarray, "s n"]) -> Bool[np.ndarray, "u n"]:
    """Each row once: equal choices of residues lead to the same superpositions."""
    packed = np.packbits(chosen, axis=1)
    rows = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
    return chosen[np.unique(rows, return_index=True)[1]]


class _Pairs:
    """Points of two structures, and their distances after superposing some of them.

    Sums over chosen pairs, and squared distances after a motion, are linear in a few products of
    the coordinates: one product of matrices gives either for many choices at once.
    """

    def __init__(self, mobile: Float64[np.ndarray, "n 3"], target: Float64[np.ndarray, "n 3"]):
        # Centered, since differences of squares lose the digits of a far origin.
        self._mobile, self._target = mobile - mobile.mean(0), target - target.mean(0)
        products = self._target[:, :, None] * self._mobile[:, None]
        norms = (self._mobile**2).sum(-1) + (self._target**2).sum(-1)
        columns = (products.reshape(-1, 9), self._mobile, self._target, np.ones((len(mobile), 1)))
        self._sums = np.concatenate(columns, axis=1)
        self._terms = np.concatenate((self._sums, norms[:, None]), axis=1).T.copy()

    @property
    def count(self) -> int:
        """How many pairs there are."""
        return len(self._mobile)

    def rmsd(self) -> float:
        """After superposing all, in Å."""
        rotation, shift = self._motions(np.ones((1, self.count), dtype=bool))
        moved = self._mobile @ rotation[0].T + shift[0]
        return math.sqrt(((moved - self._target) ** 2).sum(-1).mean())

    def squares(self, chosen: Bool[np.ndarray, "s n"]) -> Float64[np.ndarray, "s n"]:
        """Squared distances of all pairs, in Å², after superposing the chosen ones."""
        # |R p + x - t|² = -2 t·R p + 2 x·R p - 2 x·t + |x|² + |p|² + |t|²
        rotation, shift = self._motions(chosen)
        factors = np.concatenate(
            (
                -2 * rotation.reshape(-1, 9),
                2 * np.einsum("sab,sa->sb", rotation, shift),
                -2 * shift,
                (shift**2).sum(-1, keepdims=True),
                np.ones((len(shift), 1)),
            ),
            axis=1,
        )
        squares = factors @ self._terms
        return np.maximum(squares, 0, out=squares)

    def _motions(
        self, chosen: Bool[np.ndarray, "s n"]
    ) -> tuple[Float64[np.ndarray, "s 3 3"], Float64[np.ndarray, "s 3"]]:
        """Rotation and shift that bring the chosen mobile points nearest to their targets."""
        sums = chosen.astype(np.float64) @ self._sums
        count = np.maximum(sums[:, 15:], 1)
        mobile, target = sums[:, 9:12] / count, sums[:, 12:15] / count
        covariance = sums[:, :9].reshape(-1, 3, 3) / count[:, :, None]
        covariance -= target[:, :, None] * mobile[:, None]
        rotation = _rotations(covariance)
        return rotation, target - np.einsum("sab,sb->sa", rotation, mobile)


def _rotations(covariance: Float64[np.ndarray, "s 3 3"]) -> Float64[np.ndarray, "s 3 3"]:
    """Rotations (none of them a reflection) of largest overlap with target x mobile (Horn 1987)."""
    ((xx, yx, zx), (xy, yy, zy), (xz, yz, zz)) = covariance.transpose(1, 2, 0)
    rows = (
        (xx + yy + zz, yz - zy, zx - xz, xy - yx),
        (yz - zy, xx - yy - zz, xy + yx, zx + xz),
        (zx - xz, xy + yx, yy - xx - zz, yz + zy),
        (xy - yx, zx + xz, yz + zy, zz - xx - yy),
    )
    matrices = torch.from_numpy(np.array(rows).transpose(2, 0, 1).copy())
    # The eigenvector of the largest eigenvalue. torch's are three times as fast as NumPy's.
    quaternion = torch.linalg.eigh(matrices).eigenvectors[:, :, 3]
    return rotation_from_quaternion(quaternion).numpy()
