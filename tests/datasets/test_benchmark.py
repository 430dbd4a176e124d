"""The benchmark of the data runs, and what it reports is what was measured."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "data.py"


@pytest.mark.proof
def test_every_part_of_the_benchmark_is_measured(example: Path, tmp_path: Path):
    output = tmp_path / "data.json"
    words = ("--rounds", "1", "--crop", "32", "--samples", "8", "--chains", "4", "--listed", "50")
    command = [sys.executable, SCRIPT, example / "held_out", *words, "--output", output]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads(output.read_text())
    assert found["parsing"]["chains"] == found["prepare"]["chains"] == 26
    assert found["parsing"]["times_faster"] > 0
    assert 25 < found["chains"]["record_bytes_per_residue"] < 60
    assert found["loader"]["mean_residues"] == 32
    assert found["sampler"]["chains"] == 50
    assert found["sampler"]["batch_ms_median"] > 0
    assert found["circumstances"]["threads"] == 1


def test_the_check_of_the_benchmark_names_the_part_that_is_too_slow(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    slow = {"parsing": {"times_faster": 7.5}, "sampler": {"batch_ms_median": 1.25}}
    lines = importlib.import_module("data").too_slow(slow).splitlines()
    assert lines == [
        "parsing: 7.5 times as fast; 8 are promised",
        "sampler: 1.25 ms a batch; less than 1 are promised",
    ]
    fast = {"parsing": {"times_faster": 18.0}, "sampler": {"batch_ms_median": 0.1}}
    assert importlib.import_module("data").too_slow(fast) == ""
