"""The benchmark of the data runs, and what it reports is what was measured."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts" / "benchmarks"


@pytest.mark.slow
def test_every_part_of_the_benchmark_is_measured(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("benchmark_of_data", SCRIPTS / "data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    output = tmp_path / "data.json"
    words = ("--rounds", "1", "--crop", "32", "--samples", "8", "--listed", "50")
    module.main([str(example / "held_out"), *words, "--output", str(output)])
    found = json.loads(output.read_text())
    assert found["parsing"]["chains"] == found["prepare"]["chains"] == 26
    assert found["parsing"]["times_faster"] > 8
    assert 25 < found["chains"]["record_bytes_per_residue"] < 60
    assert found["loader"]["mean_residues"] == 32
    assert found["sampler"]["chains"] == 50
    assert found["circumstances"]["threads"] == 1
