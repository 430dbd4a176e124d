"""Eight real chains are learnt by heart, and then without violations (scripts/overfit.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.proof
def test_eight_chains_are_learnt_and_their_violations_vanish(tmp_path: Path):
    output = tmp_path / "overfit.json"
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "overfit.py", "--output", output],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    start, initial, finetune = json.loads(output.read_text())
    assert start["lddt_ca"] < 0.1
    assert initial["lddt_ca"] >= 0.8, initial
    assert initial["lddt_all_atom"] >= 0.65, initial
    # What was learnt is not given up for good stereochemistry.
    assert finetune["lddt_ca"] >= 0.7, finetune
    assert finetune["lddt_all_atom"] >= 0.65, finetune
    before = initial["bonds"] + initial["clashes"]
    after = finetune["bonds"] + finetune["clashes"]
    assert before >= 5 * after, (before, after)
