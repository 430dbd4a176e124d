"""The script that measures what epsilon leaves of the steps of Table 10's arms."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "paper_arms.py"


@pytest.mark.proof
def test_openfolds_epsilon_holds_lorta_of_rank_64_still(tmp_path: Path):
    output = tmp_path / "found.json"
    words = ["--arms", "lorta_r64", "--eps", "1e-5", "1e-15", "--steps", "3", "--output", output]
    subprocess.run([sys.executable, SCRIPT, *words], check=True, capture_output=True)
    damped, free = json.loads(output.read_text())["rows"]
    factors = ("a", "c_h", "c_l", "c_m")
    assert all(damped["damping"][name] < 0.01 for name in factors)
    assert all(free["damping"][name] > 0.9 for name in (*factors, "b"))
    # Of B, whose gradient is the largest, it leaves a part.
    assert damped["damping"]["a"] < damped["damping"]["b"] < 0.5
    assert 0 < damped["relative_update"] < free["relative_update"]
