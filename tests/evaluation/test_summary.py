"""Means, intervals and calibration of scores that are known."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from esmfold_peft.evaluation import result_files
from esmfold_peft.evaluation.calibration import calibration
from esmfold_peft.evaluation.pairing import Pair
from esmfold_peft.evaluation.scoring import METRICS, SCORED, Scored, not_scored
from esmfold_peft.evaluation.summary import mean_interval, statistic, summarize


def scored(name: str, split: str = "", **values: float | str) -> Scored:
    row = not_scored(Pair(name, split, None, None, "p", "r"), SCORED).row
    numbers = {**dict.fromkeys(METRICS, 0.5), "match": "sequence", **values}
    return Scored(replace(row, **numbers), calibration(None, np.zeros(1)))


def lost(name: str, reason: str, split: str = "") -> Scored:
    return not_scored(Pair(name, split, None, None, "p", "r"), reason)


def test_the_interval_holds_the_mean_and_shrinks_with_the_square_root():
    draw = np.random.default_rng(0)
    widths = []
    for n in (100, 1600):
        values = draw.normal(size=n)
        low, high = mean_interval(values)
        assert low < values.mean() < high
        # What the normal distribution gives.
        assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(n), rel=0.1)
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.2)


def test_of_five_values_the_interval_is_too_narrow():
    """By how much is said in docs/evaluation.md: it holds the mean in 84 % of cases."""
    generator = np.random.default_rng(0)
    intervals = [mean_interval(generator.normal(size=5)) for _ in range(400)]
    assert 0.79 < np.mean([low <= 0 <= high for low, high in intervals]) < 0.89


def test_the_interval_depends_on_the_values_alone():
    values = np.random.default_rng(1).uniform(size=50)
    assert mean_interval(values) == mean_interval(values[::-1].copy())
    assert mean_interval(np.full(5, 0.25)) == (0.25, 0.25)


def test_of_several_runs_the_interval_is_over_runs_and_chains():
    draw = np.random.default_rng(2)
    runs, chains = draw.normal(size=(12, 1)), 2 * draw.normal(size=60)
    low, high = mean_interval(runs + chains)
    # Independent draws of both: their variances add up.
    deviation = np.sqrt(runs.var() / 12 + chains.var() / 60)
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.1)
    alone = mean_interval(chains)
    assert mean_interval(chains[None]) == alone
    assert mean_interval(np.tile(chains, (3, 1))) == pytest.approx(alone)
    # A shift of all chains of one run widens it; nothing is left of it without differences.
    low, high = mean_interval(chains + np.array([[0.0], [0.0], [3.0]]))
    assert high - low > 1.5 * (alone[1] - alone[0])
    assert mean_interval(np.full((3, 5), 0.25)) == (0.25, 0.25)


def test_over_runs_and_chains_the_interval_holds_the_mean_as_often_as_it_says():
    draw = np.random.default_rng(3)
    intervals = [
        mean_interval(draw.normal(size=(15, 1)) + draw.normal(size=15)) for _ in range(300)
    ]
    assert 0.90 < np.mean([low <= 0 <= high for low, high in intervals]) < 0.97


def test_a_statistic_leaves_out_what_is_no_number():
    found = statistic([0.2, None, 0.4, float("nan"), 0.9])
    assert (found.count, found.mean, found.median) == (3, pytest.approx(0.5), 0.4)
    assert statistic([None]).mean is None


def test_a_summary_counts_means_and_gives_reasons():
    results = [
        scored("a", lddt_ca=0.2, rmsd=1.0),
        scored("b", lddt_ca=0.6, match="number", note="odd"),
        scored("c", lddt_ca=float("nan"), match="number"),
        lost("d", "no prediction"),
    ]
    found = summarize(results)
    assert (found["chains"], found["skipped"]) == (3, 1)
    assert found["lddt_ca"] == found["metrics"]["lddt_ca"]["mean"] == pytest.approx(0.4)
    assert found["metrics"]["lddt_ca"]["count"] == 2
    assert found["metrics"]["rmsd"]["count"] == 3
    assert found["match"] == {"number": 2, "sequence": 1}
    assert found["skipped_chains"] == [{"id": "d", "split": "", "reason": "no prediction"}]
    assert found["notes"] == {"odd": 1}
    assert found["calibration"]["mean_absolute_error"] is None
    assert "splits" not in found


def test_splits_are_summarized_apart():
    results = [scored("a", "train", lddt_ca=0.8), scored("a", "validation", lddt_ca=0.4)]
    found = summarize([*results, lost("b", "x", "validation")])
    assert found["splits"]["train"]["lddt_ca"] == 0.8
    assert found["splits"]["validation"]["lddt_ca"] == 0.4
    assert [found["splits"][name]["skipped"] for name in ("train", "validation")] == [0, 1]


def test_calibration_is_that_of_all_residues_at_once():
    draw = np.random.default_rng(2)
    plddt = draw.uniform(20, 95, size=500)
    lddt = np.clip(plddt / 100 + draw.normal(scale=0.1, size=500), 0, 1)
    lddt[::50], plddt[7] = np.nan, np.nan
    whole = calibration(plddt, lddt)
    parts = calibration(plddt[:123], lddt[:123]) + calibration(plddt[123:], lddt[123:])
    known = np.isfinite(plddt) & np.isfinite(lddt)
    x, y = plddt[known], lddt[known]
    assert whole.residues == known.sum() == parts.residues
    assert whole.pearson() == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)
    assert parts.pearson() == pytest.approx(whole.pearson(), abs=1e-12)
    bins = (x // 5).astype(int)
    error = sum(abs((x / 100 - y)[bins == k].sum()) for k in range(20)) / len(x)
    assert whole.error() == pytest.approx(error, abs=1e-12)


def test_a_perfect_plddt_has_no_error_and_a_constant_one_no_correlation():
    lddt = np.linspace(0, 1, 21)
    perfect = calibration(100 * lddt, lddt)
    assert perfect.error() == pytest.approx(0, abs=1e-12)
    assert perfect.pearson() == pytest.approx(1)
    assert calibration(np.full(21, 50.0), lddt).pearson() is None
    assert calibration(np.full(21, 50.0), lddt).error() == pytest.approx(0, abs=1e-12)
    assert calibration(None, lddt).error() is None


def test_the_rank_correlation_is_that_of_the_chains():
    rows = [(10.0, 0.1), (50.0, 0.3), (40.0, 0.9)]
    results = [scored(str(k), plddt=p, lddt_ca=s) for k, (p, s) in enumerate(rows)]
    assert summarize(results)["calibration"]["spearman_of_chains"] == pytest.approx(0.5)
    assert summarize(results[:1])["calibration"]["spearman_of_chains"] is None


def test_a_summary_names_no_package_that_a_user_may_lack():
    """Those of the tests are not installed with the program."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    needed = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    assert set(result_files._PACKAGES) <= needed
