"""A search on real chains, killed on the way: by this machine's processes, and by Ray."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from esmfold_peft.config import PrepareConfig
from esmfold_peft.prepare import run as prepare
from esmfold_peft.search.executors.local import is_alive
from esmfold_peft.search.reading import read_search
from esmfold_peft.search.status_view import status_json
from tests.nursery import Nursery, Started

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
    """The first pair has diverged, the second is scored, and the better is kept."""
    ended = [e for e in events(output) if e["event"] == "ended"]
    assert [(e["alpha"], e["ending"], e["rule"]) for e in ended] == [
        (4e30, "diverged", "nonfinite"),
        (2e30, "diverged", "nonfinite"),
        (4.0, "converged", None),
        (2.0, "converged", None),
    ]
    best = max(ended[2:], key=lambda e: e["score"])
    check_report(output, best["alpha"])


def check_report(output: Path, alpha: float) -> None:
    """All files of the report are there, and the table has the winner."""
    (winner,) = (e for e in events(output) if e["event"] == "winner")
    assert winner["alpha"] == alpha
    names = {path.name for path in (output / "report").iterdir()}
    assert names >= {"table10.csv", "table10.md", "figure5.png", "figure5.svg", "index.html"}
    assert f",{alpha:g}," in (output / "report" / "table10.csv").read_text()


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
    assert "of which" in (third / "train.log").read_text()  # it went on where it was
    record = read_search(output)
    assert json.loads(json.dumps(status_json(record)))["finished"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_a_ladder_ends_by_itself_on_a_local_ray(stores: Path, tmp_path: Path):
    output = tmp_path / "search"
    flags = ("--executor.kind", "ray", "--executor.gpus", "0", "--ladder.multiples", "[1.0e+30]")
    done = subprocess.run(
        [sys.executable, "-m", "esmfold_peft", *words(stores, output), *flags],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    found = [(e["alpha"], e["ending"], e["rule"]) for e in events(output) if e["event"] == "ended"]
    assert found == [(4e30, "diverged", "nonfinite"), (4.0, "converged", None)]
    check_report(output, 4.0)
