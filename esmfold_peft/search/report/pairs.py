"""Every two adapters of a search, compared chain by chain."""

import statistics
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from esmfold_peft.config import LadderConfig
from esmfold_peft.evaluation.comparison import Difference, difference
from esmfold_peft.search.outcomes import chain_scores, scored_at
from esmfold_peft.search.records import SearchRecord, TrialRecord
from esmfold_peft.search.report.table import Row, ending_of, number, rows_of

PAIR_COLUMNS = (
    "one", "other", "seeds", "chains", "one_lddt_ca", "other_lddt_ca", "difference",
    "low", "high", "p", "wins", "ties", "losses",
)  # fmt: skip

Scores = dict[int, dict[str, float]]
"""lDDT-Cα by seed and chain."""


@dataclass(frozen=True)
class ArmPair:
    """Two adapters on the chains and seeds that both have.

    Attributes:
        one: label of the first.
        other: of the second.
        seeds: how many both have.
        difference: second minus first, paired by chain.
    """

    one: str
    other: str
    seeds: int
    difference: Difference


@dataclass(frozen=True)
class ArmPairs:
    """All pairs.

    Attributes:
        pairs: in the order of the grid.
        missing: a sentence for each adapter and seed, or pair, that has nothing to compare.
    """

    pairs: tuple[ArmPair, ...]
    missing: tuple[str, ...]


def pairs_of(record: SearchRecord) -> ArmPairs:
    """Compares the winners of every two adapters.

    A chain's score is that of the validation which the ladder has judged by, mean over the seeds
    that both adapters have. Interval and p are those of `evaluate --compare`.
    """
    pairs: list[ArmPair] = []
    missing: list[str] = []
    scored = {row.label: _scores(row, record.config.ladder, missing) for row in rows_of(record)}
    for one, other in combinations([label for label, scores in scored.items() if scores], 2):
        pair = _pair(one, other, scored[one], scored[other])
        if pair is None:
            missing.append(f"{one} and {other} have no chain of the same seed in common.")
        else:
            pairs.append(pair)
    return ArmPairs(tuple(pairs), tuple(missing))


def pair_cells(pair: ArmPair) -> list[str]:
    """A row of pairs.csv."""
    found = pair.difference
    return [
        pair.one,
        pair.other,
        str(pair.seeds),
        str(found.count),
        *map(number, (found.one, found.other, found.difference, found.low, found.high)),
        "" if found.wilcoxon_p is None else f"{found.wilcoxon_p:.1g}",
        *map(str, (found.wins, found.ties, found.losses)),
    ]


def _pair(label: str, other_label: str, one: Scores, other: Scores) -> ArmPair | None:
    seeds = [seed for seed in one if other.get(seed, {}).keys() & one[seed].keys()]
    # By chain: what both have of it, a pair of scores for each seed.
    both: dict[str, list[tuple[float, float]]] = {}
    for seed in seeds:
        for chain in sorted(one[seed].keys() & other[seed].keys()):
            both.setdefault(chain, []).append((one[seed][chain], other[seed][chain]))
    if not both:
        return None
    means = [[statistics.fmean(scores) for scores in zip(*c, strict=True)] for c in both.values()]
    first, second = np.array(means, dtype=np.float64).T
    return ArmPair(label, other_label, len(seeds), difference("lddt_ca", first, second))


def _scores(row: Row, config: LadderConfig, missing: list[str]) -> Scores:
    """The scores of an adapter's winners; says which seeds have none, and why."""
    found: Scores = {}
    for ladder in row.ladders:
        name = f"{row.label}, seed {ladder.arm.seed}"
        if ladder.winner is None:
            missing.append(f"{name}, has no winner: {ending_of(ladder)}.")
        elif scores := _of_winner(ladder.winner, config):
            found[ladder.arm.seed] = scores
        else:
            missing.append(f"{name}, has no table of its validation chains.")
    return found


def _of_winner(winner: TrialRecord, config: LadderConfig) -> dict[str, float]:
    at = scored_at(winner.folder, winner.trial.steps, config)
    return {} if at is None else chain_scores(winner.folder, at[0], config)
