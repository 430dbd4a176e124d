"""A search on real chains, killed on the way, and one on a Ray cluster that was there before."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from esmfold_peft.commands.prepare import run as prepare
from esmfold_peft.config import ExecutorConfig, PrepareConfig
from esmfold_peft.config.parsing import config_text
from esmfold_peft.search.attempt import attempts
from esmfold_peft.search.executors.local import is_alive
from esmfold_peft.search.executors.ray import NAMESPACE, RayExecutor
from esmfold_peft.search.search_record import read_search
from esmfold_peft.search.status_view import status_json
from tests.nursery import Nursery, Started
from tests.search.test_attempt import until
from tests.tiny import TINY

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "data" / "example"

SETTINGS = (
    *("--grid", "{lorta: [4]}", "--ladder.multiples", "[1.0e+30, 5.0e+29]"),
    *("--ladder.factor", "1.0e+30", "--ladder.floor", "0.1"),
    *("--engine.steps", "5", "--engine.validate_every", "5", "--engine.validate_raw", "false"),
    *("--checkpoints.every", "2", "--log.every", "1", "--guard.nonfinite_steps", "3"),
    *("--executor.poll_seconds", "0.2", "--data.crop", "32"),
)
"""Scales of 1e30 overflow float32 after the first update; 1 and 0.5 learn."""


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores")
    chains = {
        "train": sorted((EXAMPLE / "train").glob("*.cif.gz")),
        "held_out": [EXAMPLE / "held_out" / f"{n}.cif.gz" for n in ("1ubq_A", "3u8v_A")],
    }
    for name, files in chains.items():
        prepare(PrepareConfig(tuple(files), folder / name, clusters="none", workers=1))
    return folder


def words(stores: Path, output: Path) -> list[str]:
    data = ("--data.train", stores / "train", "--data.validation", stores / "held_out")
    settings = (ROOT / "configs" / "tiny.yaml", *SETTINGS, *data, "--output", output)
    return ["search", *map(str, settings), "--allow-leaks"]


def events(output: Path) -> list[dict]:
    path = output / "ledger.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def wait(condition: Callable[[], bool], search: Started) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert search.running(), search.printed()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def check_end(output: Path) -> None:
    """The first pair has diverged, the second is scored, and the better is kept, with a report."""
    # Of a pair that runs at once either may end first.
    ended = [e for e in events(output) if e["event"] == "ended"]
    ended.sort(key=lambda e: -e["alpha"])
    assert [(e["alpha"], e["ending"], e["rule"]) for e in ended] == [
        (4e30, "diverged", "nonfinite"),
        (2e30, "diverged", "nonfinite"),
        (4.0, "converged", None),
        (2.0, "converged", None),
    ]
    best = max(ended[2:], key=lambda e: e["score"])
    (winner,) = (e for e in events(output) if e["event"] == "winner")
    assert winner["alpha"] == best["alpha"]
    names = {path.name for path in (output / "report").iterdir()}
    assert names >= {"table10.csv", "table10.md", "figure5.png", "figure5.svg", "index.html"}
    assert f",{best['alpha']:g}," in (output / "report" / "table10.csv").read_text()


@pytest.mark.slow
def test_a_ladder_ends_by_itself_whatever_is_killed(stores: Path, tmp_path: Path, nursery: Nursery):
    output = tmp_path / "search"
    # The search dies while its first trial runs, which goes on alone.
    search = nursery.start(*words(stores, output))
    wait(lambda: any(e["event"] == "started" for e in events(output)), search)
    search.kill()
    search.wait()
    first = output / "trials" / "lorta_r4_seed0" / "alpha_4e+30"
    assert is_alive(first)
    # The search and the trial of the second pair die together after a checkpoint.
    search = nursery.start(*words(stores, output))
    third = output / "trials" / "lorta_r4_seed0" / "alpha_4"
    wait(lambda: any((third / "run" / "checkpoints").glob("step_0000000[2-9]")), search)
    search.kill()
    search.wait()
    os.killpg(int((third / ".attempt").read_text().split()[0]), signal.SIGKILL)
    search = nursery.start(*words(stores, output))
    assert search.wait(400) == 0, search.printed()
    check_end(output)
    begun = [e["alpha"] for e in events(output) if e["event"] == "started"]
    assert begun == [4e30, 2e30, 4.0, 4.0, 2.0]
    assert "are done already" in (third / "train.log").read_text()  # it went on where it was
    logs = [path.read_text() for path in output.glob("trials/*/*/train.log")]
    assert not any("looking for training chains" in log for log in logs)  # the search has
    record = read_search(output)
    assert json.loads(json.dumps(status_json(record)))["finished"]


@pytest.fixture(scope="module")
def cluster():
    """A Ray on this machine, as it is there before a search."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, namespace=NAMESPACE)
        yield ray
        ray.shutdown()


@pytest.mark.proof
def test_a_ladder_ends_by_itself_on_ray(cluster, stores: Path, tmp_path: Path):
    output = tmp_path / "search"
    address = cluster.get_runtime_context().gcs_address
    flags = ["--executor.kind", "ray", "--executor.gpus", "0", "--executor.address", address]
    done = subprocess.run(
        [sys.executable, "-m", "esmfold_peft", *words(stores, output), *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    check_end(output)


@pytest.mark.proof
def test_a_restarted_search_finds_its_actors_and_begins_lost_ones_again(cluster, tmp_path: Path):
    folder = tmp_path / "trial"
    folder.mkdir()
    (folder / "trial.yaml").write_text(config_text(replace(TINY, run=folder / "run")))
    config = ExecutorConfig(kind="ray", gpus=0.0)
    handle = RayExecutor(config, tmp_path, 0).start([folder])[0]
    until(lambda: bool(attempts(folder)))
    later = RayExecutor(config, tmp_path, 0)
    later.adopt(folder, handle)
    assert later.alive(folder)
    # Its node is lost: the job is gone.
    cluster.kill(cluster.get_actor(str(handle["actor"]), namespace=NAMESPACE))
    until(lambda: not later.alive(folder))
    # Begun again, it ends by itself (it has no chains), and its actor gives back its name.
    later.start([folder])
    until(lambda: not later.alive(folder))
    assert [attempt.code for attempt in attempts(folder)] == [None, 2]
