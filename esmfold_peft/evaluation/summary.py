"""The scores of many chains together: means, their intervals, calibration, reasons."""

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from jaxtyping import Float64

from esmfold_peft.evaluation.calibration import BINS, Calibration, calibration
from esmfold_peft.evaluation.scoring import METRICS, SCORED, WITHOUT_PLACE, Score, Scored

SEED, RESAMPLES, CONFIDENCE = 0, 5_000, 0.95
"""Of the bootstrap."""

FEWEST = 5
"""Values for an interval. Percentile intervals are too narrow for few: of normal values the 95 %
interval holds the mean in 51 % of cases (2 values), 72 (3), 84 (5), 91 (10)."""

_AT_ONCE = 2**20
"""Numbers drawn at a time, which bounds the memory."""


def mean_interval(
    values: Float64[np.ndarray, "*runs n"],
) -> tuple[float, float] | tuple[None, None]:
    """The 95 % percentile interval of the mean by bootstrap (Efron 1979), always with one seed.

    Of several runs, each a row with the same n chains, rows and columns are drawn independently
    (pigeonhole bootstrap, Owen 2007, Ann. Appl. Stat. 1:386): the interval is over runs and chains.

    None for fewer than five chains. It is too narrow for few (`FEWEST`), and of few runs it
    understates how they differ. The order of the chains does not matter.
    """
    rows = np.atleast_2d(values)
    runs, count = rows.shape
    if count < FEWEST:
        return None, None
    ordered = rows[:, np.lexsort(rows)]
    generator = np.random.default_rng(SEED)
    most = max(1, _AT_ONCE // ordered.size)
    means = np.empty(RESAMPLES)
    for part in np.split(means, range(most, RESAMPLES, most)):
        of_runs = ordered[:, generator.integers(count, size=(len(part), count))].mean(-1).T
        drawn = generator.integers(runs, size=(len(part), runs))
        part[:] = np.take_along_axis(of_runs, drawn, axis=-1).mean(-1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)


@dataclass(frozen=True)
class Statistic:
    """A metric over the chains that have it; None if no chain does.

    Attributes:
        count: how many chains these are.
        mean: over them.
        median: over them.
        low: lower end of the 95 % bootstrap interval of the mean (`mean_interval`).
        high: its upper end.
    """

    count: int
    mean: float | None = None
    median: float | None = None
    low: float | None = None
    high: float | None = None


def statistic(values: Sequence[float | None]) -> Statistic:
    """Mean, median and interval of the values that are numbers."""
    known = np.array([v for v in values if v is not None and np.isfinite(v)], dtype=np.float64)
    if not len(known):
        return Statistic(0)
    # Sorted, so that the order of the chains does not show in the last digit.
    mean = statistics.fmean(np.sort(known))
    return Statistic(len(known), mean, float(np.median(known)), *mean_interval(known))


def summarize(results: Sequence[Scored]) -> dict[str, Any]:
    """The chains' part of summary.json, and the same for each split if there are several.

    `results` are sorted by id, so that sums do not depend on the order of the work.
    """
    splits = sorted({result.row.split for result in results})
    summary = _summary(results)
    if len(splits) > 1:
        summary["splits"] = {
            split: _summary([r for r in results if r.row.split == split]) for split in splits
        }
    return summary


def _summary(results: Sequence[Scored]) -> dict[str, Any]:
    scored = [result.row for result in results if result.row.status == SCORED]
    skipped = [result.row for result in results if result.row.status != SCORED]
    metrics = {name: statistic([getattr(row, name) for row in scored]) for name in METRICS}
    sums = [result.calibration for result in results if result.calibration is not None]
    # The number after this note differs from chain to chain.
    notes = (re.sub(f"({WITHOUT_PLACE}): [0-9]+", r"\1", row.note) for row in scored if row.note)
    return {
        "chains": len(scored),
        "skipped": len(skipped),
        **{name: found.mean for name, found in metrics.items()},
        "metrics": {name: asdict(found) for name, found in metrics.items()},
        "match": dict(sorted(Counter(row.match for row in scored).items())),
        "calibration": _calibration(reduce(add, sums, calibration()), scored),
        "skipped_chains": [
            {"id": row.id, "split": row.split, "reason": row.status} for row in skipped
        ],
        "notes": dict(sorted(Counter(notes).items())),
    }


def _calibration(sums: Calibration, scored: list[Score]) -> dict[str, Any]:
    width = 100 / BINS
    return {
        "residues": sums.residues,
        "mean_absolute_error": sums.error(),
        "pearson": sums.pearson(),
        "spearman_of_chains": _spearman([(row.plddt, row.lddt_ca) for row in scored]),
        "bins": [
            {
                "from": k * width,
                "to": (k + 1) * width,
                "residues": n,
                "plddt": 100 * float(sums.plddt[k]) / n,
                "lddt_ca": float(sums.lddt[k]) / n,
            }
            for k, n in enumerate(sums.count.tolist())
            if n
        ],
    }


def _spearman(chains: list[tuple[float | None, float | None]]) -> float | None:
    """Rank correlation of mean pLDDT and lDDT-Cα; None if one of the two does not vary."""
    from scipy.stats import spearmanr

    values = np.array(chains, dtype=np.float64).reshape(-1, 2)
    values = values[np.isfinite(values).all(-1)]
    if len(values) < 2 or (np.ptp(values, axis=0) == 0).any():
        return None
    result: Any = spearmanr(values[:, 0], values[:, 1])
    return float(result.statistic)
