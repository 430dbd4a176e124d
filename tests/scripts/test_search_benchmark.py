"""The simulation of searches: what it counts, that it finds a wrong ladder, and its kept result."""

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from esmfold_peft.search.ladder import Decision, Outcome, Trial

BENCHMARKS = Path(__file__).parents[2] / "scripts" / "benchmarks"
RESULT = BENCHMARKS / "results" / "search_simulated.json"
TRIAL = 850_000 * 13.34 / 3600


@pytest.fixture(scope="module")
def benchmark():
    """The script; `search` alone would be a name for anything."""
    spec = spec_from_file_location("search_benchmark", BENCHMARKS / "search.py")
    assert spec is not None
    assert spec.loader is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        module = module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def numbers(benchmark, folder: Path, *words: str) -> dict:
    """What a run writes."""
    output = folder / "found.json"
    benchmark.main([*words, "--output", str(output)])
    return json.loads(output.read_text())


def laws(found: dict, hours_of_a_trial: float) -> None:
    """What must be so whatever is drawn."""
    assert found["outcomes"].startswith("synthetic: ")
    rows = found["divergence"]
    assert list(rows) == ["early", "anytime", "late"]
    for row in rows.values():
        assert row["hours_all_steps"] == pytest.approx(row["trials"] * hours_of_a_trial)
        assert row["hours_with_halving"] < row["hours_early_divergence"] < row["hours_all_steps"]
        saved = 1 - row["hours_early_divergence"] / row["hours_all_steps"]
        assert row["saved_by_early_divergence"] == pytest.approx(saved)
        assert 2 <= row["trials"] <= 10
    assert len({row["hours_all_steps"] for row in rows.values()}) == 1  # the same adapters
    shares = [row["saved_by_early_divergence"] for row in rows.values()]
    assert shares == sorted(shares, reverse=True)  # the later they diverge, the less is saved


@pytest.mark.slow
def test_a_small_run_keeps_the_laws_and_its_seed(benchmark, tmp_path: Path, capsys):
    found = numbers(benchmark, tmp_path, "--ladders", "12")
    laws(found, TRIAL)
    assert "synthetic outcomes" in " ".join(capsys.readouterr().out.split())
    assert numbers(benchmark, tmp_path, "--ladders", "12")["divergence"] == found["divergence"]
    other = numbers(benchmark, tmp_path, "--ladders", "12", "--seed", "1")["divergence"]
    assert other != found["divergence"]


@pytest.mark.slow
def test_hours_are_proportional_to_the_seconds_of_a_step(benchmark, tmp_path: Path):
    found = numbers(benchmark, tmp_path, "--ladders", "12", "--seconds_per_step", "3.6")
    laws(found, 850.0)


def test_the_kept_result_is_of_thousands_and_names_no_machine():
    text = RESULT.read_text()
    found = json.loads(text)
    laws(found, TRIAL)
    assert found["settings"]["ladders"] >= 5000
    assert found["settings"]["seconds_per_step"] == 13.34
    assert "assumed" in found["settings"]["seconds_per_step_is"]
    assert "-dirty" not in found["circumstances"]["git_commit"]
    assert not any(folder in text for folder in ("/home", "/tmp", "/work", "/root"))


def fates(benchmark, **diverges: int):
    """Trials of 256·r and 128·r; the rest diverges at step 1."""
    found = {m: benchmark.Fate(1, Outcome("converged"), Outcome("converged")) for m in (64.0, 32.0)}
    for name, step in diverges.items():
        end = Outcome("converged", 0.5)
        found[float(name.removeprefix("x"))] = benchmark.Fate(step or None, end, end)
    return found


def test_steps_that_are_counted(benchmark):
    both = fates(benchmark, x256=1000, x128=0)
    pair = benchmark.Climbed((Trial(256.0, 850_000), Trial(128.0, 850_000)), 128.0)
    assert pair.steps(both, guarded=False) == 1_700_000
    assert pair.steps(both, guarded=True) == 851_000
    parts = (Trial(256.0, 85_000), Trial(128.0, 85_000), Trial(128.0, 850_000))
    # The first part of the trial that continues is not run again.
    assert benchmark.Climbed(parts, 128.0).steps(both, guarded=True) == 851_000
    none = fates(benchmark, x256=0, x128=0)
    assert benchmark.Climbed(parts, 128.0).steps(none, guarded=True) == 935_000


def impatient(rules, outcomes) -> Decision:
    """Wrong: keeps the first that converges and does not wait for its mate."""
    for trial, outcome in outcomes.items():
        if outcome.ending != "diverged":
            return Decision((), 0, trial)
    trials = [Trial(m, rules.steps) for rung in rules.rungs for m in rung]
    return Decision(tuple(trial for trial in trials if trial not in outcomes)[:1], 0)


def forgetful(rules, outcomes) -> Decision:
    """Wrong: asks for the first trial for ever."""
    return Decision((Trial(rules.rungs[0][0], rules.steps),), 0)


@pytest.mark.parametrize(
    ("ladder", "said"), [(impatient, "the rule gives"), (forgetful, "was asked for again")]
)
def test_a_wrong_ladder_is_found(benchmark, monkeypatch: pytest.MonkeyPatch, ladder, said: str):
    monkeypatch.setattr(benchmark, "decide", ladder)
    with pytest.raises(SystemExit, match=said):
        benchmark.main(["--ladders", "20"])
