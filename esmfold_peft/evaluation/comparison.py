"""Two evaluations of the same chains, compared chain by chain."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from esmfold_peft.console import report
from esmfold_peft.disk.csv_text import read_table
from esmfold_peft.disk.files import read_json
from esmfold_peft.errors import UserError
from esmfold_peft.evaluation.scoring import METRICS, SCORED, Score
from esmfold_peft.evaluation.summary import mean_interval
from esmfold_peft.evaluation.table_files import SCORES, SUMMARY, Columns

_LOWER_IS_BETTER = ("rmsd",)
_NOT_A_QUALITY = ("plddt",)
"""A higher value is not a better prediction: there are no wins."""

_reference = attrgetter("length", "resolved", "pairs")
"""The columns of a `Score` that describe the reference."""

_DECIMALS = 9
"""Of a difference. The last bits of a score depend on the number of threads (TM-score: 6e-15)."""

Key = tuple[str, str]
"""Split and id of a chain."""


@dataclass(frozen=True)
class Difference:
    """A metric of the second evaluation minus that of the first, over the chains that both have.

    Attributes:
        count: chains that have it in both.
        one: mean of the first.
        other: mean of the second.
        difference: mean of the differences, second minus first.
        low: lower end of the 95 % bootstrap interval of the mean difference (`mean_interval`).
        high: its upper end.
        wilcoxon_p: of the two-sided signed-rank test (Wilcoxon 1945); None if no chain differs.
        wins: chains on which the second is better (a lower RMSD, a higher other score); None for
            pLDDT.
        ties: chains with values that are equal to 9 decimals.
        losses: chains on which the first is better.
    """

    count: int
    one: float | None = None
    other: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    wilcoxon_p: float | None = None
    wins: int | None = None
    ties: int | None = None
    losses: int | None = None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two tables of scores, joined.

    Attributes:
        keys: chains with scores in both, sorted; the split is "" if ids alone tell the chains of
            each table apart.
        one: their rows in the first.
        other: their rows in the second.
        only_one: chains with scores in the first alone.
        only_other: chains with scores in the second alone.
        other_references: of `keys` those whose references differ in length, resolved residues or
            Cα pairs.
    """

    keys: list[Key]
    one: list[Score]
    other: list[Score]
    only_one: list[Key]
    only_other: list[Key]
    other_references: list[Key]

    def differences(self) -> dict[str, Difference]:
        """The difference of each metric."""
        return {
            name: difference(name, _values(self.one, name), _values(self.other, name))
            for name in METRICS
        }

    def columns(self) -> Columns:
        """A line for each chain that both have: every metric twice, and the difference."""
        splits, names = zip(*self.keys, strict=True)
        table: Columns = {"id": list(names), "split": list(splits)}
        for name in METRICS:
            one, other = _values(self.one, name), _values(self.other, name)
            found = {"_1": one, "_2": other, "_difference": other - one}
            table |= {
                name + ending: [v if math.isfinite(v) else None for v in values.tolist()]
                for ending, values in found.items()
            }
        return table

    def summary(self) -> dict[str, Any]:
        """The chains' part of comparison.json."""
        return {
            "chains": len(self.keys),
            "metrics": {name: asdict(found) for name, found in self.differences().items()},
            "only_in_the_first": [_shown(key) for key in self.only_one],
            "only_in_the_second": [_shown(key) for key in self.only_other],
            "other_references": [_shown(key) for key in self.other_references],
        }


def compare_folders(one: Path, other: Path) -> Comparison:
    """Joins two evaluations by id, and by split too if one of them has an id twice.

    Reports how many chains have different references in the two.

    Raises:
        UserError: a folder is no output of evaluate, or they have no chain in common.
    """
    tables = [_scored_rows(folder) for folder in (one, other)]
    by_split = any(len({row.id for row in rows}) < len(rows) for rows in tables)
    first, second = (
        {(row.split if by_split else "", row.id): row for row in rows} for rows in tables
    )
    keys = sorted(first.keys() & second.keys())
    if not keys:
        examples = " and ".join(_shown(next(iter(t), ("", "none"))) for t in (first, second))
        raise UserError(f"{one} and {other}: no chain has scores in both (such as {examples})")
    differing = [key for key in keys if _reference(first[key]) != _reference(second[key])]
    if differing:
        count = chains_have(len(differing))
        report(f"{count} different references in the two, such as {_shown(differing[0])}")
    return Comparison(
        keys=keys,
        one=[first[key] for key in keys],
        other=[second[key] for key in keys],
        only_one=sorted(first.keys() - second.keys()),
        only_other=sorted(second.keys() - first.keys()),
        other_references=differing,
    )


def chains_have(count: int) -> str:
    """The beginning of a sentence about so many chains."""
    return "1 chain has" if count == 1 else f"{count} chains have"


def difference(
    name: str, one: Float64[np.ndarray, "*runs n"], other: Float64[np.ndarray, "*runs n"]
) -> Difference:
    """Compares a metric over the chains that have it in both evaluations; NaN for none.

    The name of the metric decides whether more is better. Of several runs, each a row, the interval
    is over runs and chains; p, wins, ties and losses are of the chains' means over the runs.
    """
    one, other = np.atleast_2d(one, other)
    known = (np.isfinite(one) & np.isfinite(other)).all(0)
    one, other = one[:, known], other[:, known]
    if not one.size:
        return Difference(0)
    low, high = mean_interval(np.round(other - one, _DECIMALS))
    change = np.round((other - one).mean(0), _DECIMALS)
    better, worse = int((change > 0).sum()), int((change < 0).sum())
    if name in _LOWER_IS_BETTER:
        better, worse = worse, better
    judged = name not in _NOT_A_QUALITY
    return Difference(
        count=len(change),
        one=float(one.mean()),
        other=float(other.mean()),
        difference=float(change.mean()),
        low=low,
        high=high,
        wilcoxon_p=_wilcoxon(change),
        wins=better if judged else None,
        ties=int((change == 0).sum()) if judged else None,
        losses=worse if judged else None,
    )


def _wilcoxon(change: Float64[np.ndarray, "n"]) -> float | None:
    from scipy.stats import wilcoxon

    if not change.any():
        return None
    result: Any = wilcoxon(change[change != 0])
    return float(result.pvalue)


def _scored_rows(folder: Path) -> list[Score]:
    table = folder / f"{SCORES}.csv"
    if not table.is_file() or not (folder / SUMMARY).is_file():
        raise UserError(f"{folder}: no output of evaluate (no {SCORES}.csv or no {SUMMARY})")
    if "metrics" not in read_json(folder / SUMMARY):
        raise UserError(f"{folder}: no output of evaluate (its {SUMMARY} has no metrics)")
    return [row for row in read_table(table, Score, "scores") if row.status == SCORED]


def _values(rows: Sequence[Score], name: str) -> Float64[np.ndarray, "n"]:
    values = (getattr(row, name) for row in rows)
    return np.array([math.nan if v is None else v for v in values], dtype=np.float64)


def _shown(key: Key) -> str:
    split, name = key
    return f"{split}/{name}" if split else name
