"""What the scores of many chains say together."""

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from esmfold_peft.evaluation.bootstrap import mean_interval
from esmfold_peft.evaluation.calibration import BINS, Calibration, no_calibration
from esmfold_peft.evaluation.scoring import METRICS, SCORED, WITHOUT_PLACE, Score, Scored


@dataclass(frozen=True)
class Statistic:
    """A metric over chains; None where no chain has it.

    Attributes:
        count: chains that have it.
        mean: over these chains.
        median: over these chains.
        low: lower end of the 95 % bootstrap interval of the mean; None for fewer than five chains,
            and too narrow for few (see `mean_interval`).
        high: its upper end.
    """

    count: int
    mean: float | None
    median: float | None
    low: float | None
    high: float | None


def statistic(values: Sequence[float | None]) -> Statistic:
    """Mean, median and interval of the values that are numbers."""
    known = np.array([v for v in values if v is not None and np.isfinite(v)], dtype=np.float64)
    if not len(known):
        return Statistic(0, None, None, None, None)
    low, high = mean_interval(known)
    # The order of the chains must not show in the last digit.
    mean = statistics.fmean(np.sort(known))
    return Statistic(len(known), mean, float(np.median(known)), low, high)


def summarize(results: Sequence[Scored]) -> dict[str, Any]:
    """All that summary.json says of the chains, and the same for each split if there are several.

    Args:
        results: of all pairs, sorted by id, so that sums are the same whatever came first.
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
    return {
        "chains": len(scored),
        "skipped": len(skipped),
        **{name: found.mean for name, found in metrics.items()},
        "metrics": {name: asdict(found) for name, found in metrics.items()},
        "match": dict(sorted(Counter(row.match for row in scored).items())),
        "calibration": _calibration(reduce(add, sums, no_calibration()), scored),
        "skipped_chains": [
            {"id": row.id, "split": row.split, "reason": row.status} for row in skipped
        ],
        "notes": dict(sorted(Counter(_kind(row.note) for row in scored if row.note).items())),
    }


def _kind(note: str) -> str:
    """A note without the number that is another one for every chain."""
    return re.sub(f"({WITHOUT_PLACE}): [0-9]+", r"\1", note)


def _calibration(sums: Calibration, scored: list[Score]) -> dict[str, Any]:
    chains = [(row.plddt, row.lddt_ca) for row in scored]
    width = 100 / BINS
    return {
        "residues": sums.residues,
        "mean_absolute_error": sums.error(),
        "pearson": sums.pearson(),
        "spearman_of_chains": _spearman(chains),
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
    """Rank correlation of mean pLDDT and lDDT-Cα; None where one of the two does not vary."""
    from scipy.stats import spearmanr

    values = np.array(chains, dtype=np.float64).reshape(-1, 2)
    values = values[np.isfinite(values).all(-1)]
    if len(values) < 2 or (np.ptp(values, axis=0) == 0).any():
        return None
    result: Any = spearmanr(values[:, 0], values[:, 1])
    return float(result.statistic)
