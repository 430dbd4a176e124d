"""The search with an executor that runs nothing: its trials end as they are told to."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from esmfold_peft.config import DataConfig, ExecutorConfig, LadderConfig, SearchConfig
from esmfold_peft.errors import BusyError
from esmfold_peft.runs.status import Status, write_status
from esmfold_peft.search.attempt import RUN
from esmfold_peft.search.driver import Driver, Summary
from esmfold_peft.search.executors import Executor, Handle, job_name
from esmfold_peft.search.grid import Arm, trial_folder
from esmfold_peft.search.ladder import NO_STEPS, Trial
from esmfold_peft.search.ledger import read_ledger
from esmfold_peft.search.search_record import read_search
from esmfold_peft.training.leak_guard import LEAK_CHECK

MULTIPLES = (256.0, 128.0, 64.0, 32.0, 16.0, 8.0)
ARM = Arm("lorta", 8, 0)


SAID = {
    "wrong": "esmfold-peft train: error: data.crop: 0",
    "busy": "esmfold-peft train: error: whatever it says",
}
"""What a training that has ended by an error has said, by its ending."""


class KilledError(Exception):
    """The search is killed here."""


class FakeExecutor:
    """Ends trials when they are looked at for the second time.

    Args:
        endings: status and score by α / rank; "interrupted" comes once, and then what follows it.
        kill_at: number of the call at which the search is killed; None: never.
    """

    def __init__(self, endings: dict[float, list[tuple[str, float]]]) -> None:
        self.endings = {multiple: list(ends) for multiple, ends in endings.items()}
        self.begun: list[float] = []
        self.together: list[int] = []
        self.jobs: dict[str, int] = {}
        self.calls, self.kill_at = 0, None

    def start(self, folders: Sequence[Path]) -> list[Handle]:
        self.together.append(len(folders))
        return [self._start(folder) for folder in folders]

    def _start(self, folder: Path) -> Handle:
        self._call()
        name = job_name(folder)
        assert name not in self.jobs  # never twice at a time
        self.begun.append(self._multiple(folder))
        self.jobs[name] = 0
        note(folder, '{"began": 3.0}')
        self._call()
        return {"pid": 1}

    def adopt(self, folder: Path, handle: Handle) -> None:
        self._call()

    def alive(self, folder: Path) -> bool:
        self._call()
        name = job_name(folder)
        if name not in self.jobs:
            return False
        self.jobs[name] += 1
        if self.jobs[name] < 2:
            return True
        del self.jobs[name]
        status, score = self.endings[self._multiple(folder)].pop(0)
        if status in SAID:
            code = BusyError.exit_code if status == "busy" else 2
            note(folder, f'{{"ended": 4.0, "code": {code}}}')
            (folder / "train.log").write_text(f"first\n{SAID[status]}\n")
        else:
            write_end(folder, status, score)
        return False

    def stop(self) -> None:
        raise AssertionError

    def _call(self) -> None:
        self.calls += 1
        if self.calls == self.kill_at:
            raise KilledError

    @staticmethod
    def _multiple(folder: Path) -> float:
        return float(folder.name.removeprefix("alpha_").replace("run", "1")) / ARM.rank


def note(folder: Path, line: str) -> None:
    with (folder / "attempts.jsonl").open("a") as file:
        file.write(f"{line}\n")


def write_end(folder: Path, status: str, score: float) -> None:
    run = folder / RUN
    run.mkdir(exist_ok=True)
    steps = yaml.safe_load((folder / "trial.yaml").read_text())["engine"]["steps"]
    done = min(7, steps) if status in ("diverged", "interrupted") else steps
    rule = "loss" if status == "diverged" else None
    write_status(run, Status(status, done, steps, rule=rule, message="so it is"))
    metrics = run / "metrics.csv"
    before = metrics.read_text() if metrics.is_file() else "step,validation/lddt_ca\n"
    metrics.write_text(f"{before}{min(5, done)},{score}\n")


def search_config(output: Path, **executor) -> SearchConfig:
    config = SearchConfig(
        output=output,
        data=DataConfig(train=Path("/train"), validation=Path("/validation")),
        grid={"lorta": [8]},
        ladder=LadderConfig(floor=8.0),
        executor=ExecutorConfig(poll_seconds=0.0, **executor),
    )
    return replace(config, engine=replace(config.engine, steps=10))


def driver(config: SearchConfig, executor: FakeExecutor, say=lambda line: None) -> Driver:
    return Driver(config, executor, say)


def searched(config: SearchConfig, executor: FakeExecutor, kills: list[int]) -> Summary:
    """The end of a search that is killed after some calls, several times."""
    for calls in kills:
        executor.kill_at = executor.calls + calls
        try:
            return driver(config, executor).run()
        except KilledError:
            continue
    executor.kill_at = None
    return driver(config, executor).run()


def expected(final: dict[float, tuple[str, float]]) -> tuple[list[float], float | None]:
    """The paper's rule, told once more: multiples that are trained, and the one that is kept."""
    trained: list[float] = []
    for pair in ((256.0, 128.0), (64.0, 32.0), (16.0, 8.0)):
        trained += pair
        alive = [m for m in pair if final[m][0] != "diverged"]
        if alive:
            return trained, max(alive, key=lambda m: final[m][1])
    return trained, None


ENDINGS = st.sampled_from(["diverged", "diverged", "converged", "plateau"])


@st.composite
def outcomes(draw):
    """For each multiple how it ends, and how often it is interrupted before."""
    found = {}
    for multiple in MULTIPLES:
        final = (draw(ENDINGS), draw(st.integers(0, 99)) / 100)
        found[multiple] = [("interrupted", 0.0)] * draw(st.integers(0, 2)) + [final]
    return found


@settings(max_examples=20, deadline=None)
@given(outcomes(), st.lists(st.integers(1, 12), max_size=6), st.integers(1, 3))
def test_any_kills_lead_to_the_papers_trials_and_winner(endings, kills, concurrent):
    final = {multiple: ends[-1] for multiple, ends in endings.items()}
    with tempfile.TemporaryDirectory() as folder:
        config = search_config(Path(folder), concurrent=concurrent)
        executor = FakeExecutor(endings)
        summary = searched(config, executor, kills)
        trained, winner = expected(final)
        assert sorted(set(executor.begun), reverse=True) == trained
        assert (summary.winners[ARM].multiple if summary.winners else None) == winner
        assert summary.exhausted == ([] if winner else [ARM])
        ended = [e for e in read_ledger(Path(folder)) if e["event"] == "ended"]
        assert [e["alpha"] for e in ended] == [8 * e["multiple"] for e in ended]
        assert sorted((e["multiple"] for e in ended), reverse=True) == trained  # each once
        # A trial is begun as often as it was interrupted, and once: a finished one never again.
        for multiple in trained:
            assert executor.begun.count(multiple) == len(endings[multiple])
        again = FakeExecutor({})
        assert searched(config, again, []).winners == summary.winners
        assert again.begun == []


def test_a_ledger_that_was_cut_anywhere_leads_to_the_same_end(tmp_path: Path):
    endings = {m: [("diverged", 0.1)] for m in MULTIPLES[:2]}
    endings |= {64.0: [("converged", 0.45)], 32.0: [("plateau", 0.5)]}
    config = search_config(tmp_path / "s")
    config.output.mkdir()
    assert searched(config, FakeExecutor(endings), []).winners[ARM].multiple == 32.0
    whole = (config.output / "ledger.jsonl").read_bytes()
    for length in range(0, len(whole), 37):
        (config.output / "ledger.jsonl").write_bytes(whole[:length])
        executor = FakeExecutor(endings)  # whose trials have all ended, as their folders say
        assert searched(config, executor, []).winners[ARM].multiple == 32.0
        assert executor.begun == []


def test_a_trial_that_fails_again_and_again_is_given_up_and_tried_by_the_next_search(tmp_path):
    config = search_config(tmp_path, retries=1)
    executor = FakeExecutor({256.0: [("failed", 0.0)] * 9, 128.0: [("converged", 0.6)]})
    summary = searched(config, executor, [])
    assert executor.begun == [256.0, 256.0, 128.0]
    assert list(summary.failed.values()) == ["its process was killed"]
    assert not summary.winners  # its other half alone decides nothing
    states = {t.alpha: t.state for t in read_search_of(config).ladders[0].trials}
    assert states == {2048.0: "failed", 1024.0: "converged"}
    executor.endings[256.0] = [("diverged", 0.1)]
    assert searched(config, executor, []).winners[ARM].multiple == 128.0


def test_a_wrong_setting_is_not_tried_again(tmp_path: Path):
    config = search_config(tmp_path, retries=5)
    executor = FakeExecutor({256.0: [("wrong", 0.0)] * 9, 128.0: [("converged", 0.6)]})
    summary = searched(config, executor, [])
    assert executor.begun == [256.0, 128.0]
    assert list(summary.failed.values()) == [SAID["wrong"]]


def test_an_error_after_training_has_begun_is_not_of_the_settings(tmp_path: Path):
    """A disk that was full, a GPU that was lost."""
    executor = FakeExecutor({256.0: [("wrong", 0.0)] * 2 + [("diverged", 0.0)]})
    executor.endings[128.0] = [("converged", 0.6)]
    run = tmp_path / "trials/lorta_r8_seed0/alpha_2048/run"
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text("step,train/loss\n")  # after the second 3 since 1970
    summary = searched(search_config(tmp_path, retries=2), executor, [])
    assert executor.begun == [256.0, 256.0, 256.0, 128.0]
    assert summary.winners[ARM].multiple == 128.0


def test_a_trial_whose_last_process_is_not_gone_yet_is_waited_for(tmp_path: Path):
    executor = FakeExecutor({256.0: [("busy", 0.0)] * 5 + [("converged", 0.6)]})
    executor.endings[128.0] = [("busy", 0.0), ("converged", 0.5)]
    summary = searched(search_config(tmp_path, retries=1), executor, [])
    assert not summary.failed
    assert summary.winners[ARM].multiple == 256.0


def test_trials_that_may_begin_together_are_handed_over_together(tmp_path: Path):
    """An array of Slurm is one submission."""
    executor = FakeExecutor({256.0: [("converged", 0.7)], 128.0: [("converged", 0.6)]})
    assert isinstance(executor, Executor)
    searched(search_config(tmp_path, concurrent=2), executor, [])
    assert executor.together == [2]


def test_a_trial_is_left_what_the_search_found_of_leaks(tmp_path: Path):
    (tmp_path / LEAK_CHECK).write_text("found")
    driver(search_config(tmp_path), FakeExecutor({})).advance()
    folder = tmp_path / "trials/lorta_r8_seed0/alpha_2048"
    assert (folder / LEAK_CHECK).read_text() == "found"  # `train` reads it beside the run's folder
    assert trial_folder(tmp_path, ARM, Trial(256.0, 10)) / RUN == folder / "run"


def test_what_has_failed_under_other_settings_is_begun_once_more(tmp_path: Path):
    """A search was killed, its trial ended for want of memory, and the settings were corrected."""
    config = search_config(tmp_path, retries=0)
    first = driver(config, FakeExecutor({256.0: [("wrong", 0.0)]}))
    first.advance()
    folder = tmp_path / "trials/lorta_r8_seed0/alpha_2048"
    note(folder, '{"ended": 4.0, "code": 2}')
    (folder / "train.log").write_text(SAID["wrong"])
    executor = FakeExecutor({256.0: [("converged", 0.7)], 128.0: [("converged", 0.6)]})
    summary = searched(config, executor, [])
    assert not summary.failed
    assert summary.winners[ARM].multiple == 256.0


def test_a_trial_of_a_ladder_that_was_dropped_takes_a_place_and_is_kept(tmp_path: Path):
    executor = FakeExecutor({256.0: [("converged", 0.7)], 128.0: [("converged", 0.6)]})
    config = search_config(tmp_path)
    driver(config, executor).advance()
    other = replace(config, grid={"none": []})
    executor.endings[0.125] = [("converged", 0.4)]  # its folder names no α
    executor.jobs = dict.fromkeys(executor.jobs, -2)  # it runs a while yet
    later = driver(other, executor)
    assert later.advance()
    assert executor.begun == [256.0]  # there is one place, and 2048 has it
    assert later.run().winners.keys() == {Arm("none", None, 0)}
    ended = [(e["kind"], e["alpha"]) for e in read_ledger(tmp_path) if e["event"] == "ended"]
    assert ended == [("lorta", 2048.0), ("none", None)]


def test_as_many_trials_run_at_a_time_as_are_allowed(tmp_path: Path):
    executor = FakeExecutor({m: [("converged", 0.5)] for m in MULTIPLES})
    both = driver(search_config(tmp_path / "a", concurrent=2), executor)
    both.advance()
    assert executor.begun == [256.0, 128.0]
    executor = FakeExecutor({m: [("converged", 0.5)] for m in MULTIPLES})
    one = driver(search_config(tmp_path / "b", concurrent=1), executor)
    one.advance()
    assert executor.begun == [256.0]


def test_the_reader_finds_what_the_search_has_done(tmp_path: Path):
    config = search_config(tmp_path)
    endings = {256.0: [("diverged", 0.2)], 128.0: [("converged", 0.7)]}
    searched(config, FakeExecutor(endings), [])
    (ladder,) = read_search_of(config).ladders
    assert ladder.winner is not None
    assert (ladder.winner.alpha, ladder.winner.score, ladder.winner.state) == (
        1024.0,
        0.7,
        "converged",
    )
    assert [(t.alpha, t.state, t.rule, t.step) for t in ladder.trials] == [
        (2048.0, "diverged", "loss", 7),
        (1024.0, "converged", None, 10),
    ]
    assert ladder.steps_left == NO_STEPS
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines][-1] == "winner"


BEFORE = """\
{"time": 1.0, "event": "starting", "kind": "lorta", "rank": 8, "seed": 0, "alpha": 2048.0, \
"multiple": 256.0, "steps": 10, "attempt": 1}
{"time": 1.1, "event": "started", "kind": "lorta", "rank": 8, "seed": 0, "alpha": 2048.0, \
"multiple": 256.0, "steps": 10, "handle": {"pid": 7, "gpus": ""}}
{"time": 2.0, "event": "ended", "kind": "lorta", "rank": 8, "seed": 0, "alpha": 2048.0, \
"multiple": 256.0, "steps": 10, "ending": "converged", "score": 0.7, "step": 10, "rule": null, \
"message": null}
{"time": 2.1, "event": "starting", "kind": "lorta", "rank": 8, "seed": 0, "alpha": 1024.0, \
"multiple": 128.0, "steps": 10, "attempt": 1}
{"time": 2.2, "event": "lost", "kind": "lorta", "rank": 8, "seed": 0, "alpha": 1024.0, \
"multiple": 128.0, "steps": 10, "message": "its process was killed"}
"""
"""Lines as searches wrote them before; their format stays."""


def test_a_search_that_an_earlier_version_began_goes_on(tmp_path: Path):
    (tmp_path / "ledger.jsonl").write_text(BEFORE)
    config = search_config(tmp_path)
    first, second = read_search_of(config).ladders[0].trials
    assert (first.state, first.alpha, second.state) == ("converged", 2048.0, "interrupted")
    executor = FakeExecutor({128.0: [("converged", 0.6)]})
    assert searched(config, executor, []).winners[ARM].multiple == 256.0
    assert executor.begun == [128.0]
    assert (tmp_path / "ledger.jsonl").read_text().startswith(BEFORE)


def read_search_of(config: SearchConfig):
    from esmfold_peft.config.parsing import config_text

    (config.output / "search.yaml").write_text(config_text(config))
    return read_search(config.output)


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
