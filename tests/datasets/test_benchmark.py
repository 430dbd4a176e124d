"""The benchmark of the data runs, and what it reports is what was measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "data.py"


@pytest.mark.slow
def test_every_part_of_the_benchmark_is_measured(example: Path, tmp_path: Path):
    output = tmp_path / "data.json"
    words = ("--rounds", "3", "--crop", "32", "--samples", "8", "--listed", "50")
    # In a process of its own: the type checks of tests would slow our parser, not Biopython's.
    command = [sys.executable, SCRIPT, example / "held_out", *words, "--output", output]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads(output.read_text())
    assert found["parsing"]["chains"] == found["prepare"]["chains"] == 26
    assert found["parsing"]["times_faster"] > 4  # on files so small that little is parsing
    assert 25 < found["chains"]["record_bytes_per_residue"] < 60
    assert found["loader"]["mean_residues"] == 32
    assert found["sampler"]["chains"] == 50
    assert found["sampler"]["batch_ms_median"] < 1
    assert found["circumstances"]["threads"] == 1


@pytest.mark.slow
def test_parsing_is_eight_times_as_fast_as_biopython_s(shared_structures: Path):
    code = (
        "import sys; from pathlib import Path; from data import measure_parsing;"
        "print(measure_parsing([Path(name) for name in sys.argv[1:]], 1)['times_faster'])"
    )
    files = sorted((shared_structures / "rcsb").glob("*.cif.gz"))[::8]
    command = [sys.executable, "-c", code, *files]
    done = subprocess.run(command, check=True, cwd=SCRIPT.parent, capture_output=True, text=True)
    assert float(done.stdout) >= 8
