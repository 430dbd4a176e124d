"""The benchmark of scores. It prints how fast they are; no test asserts a speed."""

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "scoring.py"


@pytest.mark.proof
def test_every_score_is_measured_and_agrees_with_the_others(
    shared_structures: Path, tmp_path: Path
):
    folder, output = tmp_path / "chains", tmp_path / "scoring.json"
    folder.mkdir()
    for name in ("7vr2_A", "7y78_B", "7oj2_A", "7pl4_A"):
        file = f"{name}.cif.gz"
        (folder / file).symlink_to(shared_structures / "cameo2022" / file)
    words = ("--rounds", "1", "--long", "200", "--output", output)
    subprocess.run([sys.executable, SCRIPT, folder, *words], check=True, capture_output=True)
    found = json.loads(output.read_text())
    assert found["pairs"] == 3
    assert found["lddt_ca"]["times_faster_than_biotite"] > 0
    assert found["lddt_all_atom"]["times_faster_than_biotite"] > 0
    assert found["superposition"]["times_faster_than_tmtools"] > 0
    assert 100 < found["memory"]["lddt_all_atom_mib"] < 1000
    assert found["circumstances"]["threads"] == 1
    assert "of the fastest rounds" in found["times"]


@pytest.fixture
def scoring(monkeypatch: pytest.MonkeyPatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = spec_from_file_location("scoring_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_the_check_of_the_benchmark_names_the_score_that_is_too_slow(scoring):
    found = {
        "lddt_ca": {"times_faster_than_biotite": 2.9},
        "lddt_all_atom": {"times_faster_than_biotite": 5.0},
        "superposition": {"times_faster_than_tmtools": 3.0},
    }
    line = "lddt_ca: 2.90 times as fast as biotite; 3 are promised"
    assert scoring.too_slow(found) == line
    found["lddt_ca"]["times_faster_than_biotite"] = 3.1
    assert scoring.too_slow(found) == ""


def test_a_slow_round_does_not_change_how_many_times_faster(scoring, monkeypatch):
    """Other programs on the machine slow rounds down, at worst all but one."""
    times = {"ours": [5.0, 1.0, 5.0], "biotite": [4.0, 4.0, 3.0]}
    monkeypatch.setattr(scoring, "interleaved", lambda steps, rounds, device: times)
    found = scoring.measure({name: lambda: None for name in times}, 3, 1)
    assert found == {"ours_ms": 5000, "biotite_ms": 4000, "times_faster_than_biotite": 3}
