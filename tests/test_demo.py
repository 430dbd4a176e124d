"""`make demo` on fewer steps and chains: it ends well and says what it did."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / "scripts" / "demo.py"


def demo(output: Path, *flags: str) -> subprocess.CompletedProcess:
    """Runs the demo in a process of its own."""
    command = [sys.executable, str(DEMO), "--output", str(output), *flags]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.proof
def test_the_demo_ends_with_a_table_and_structures(tmp_path: Path):
    output = tmp_path / "demo"
    done = demo(output, "--steps", "6", "--held-out", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [re.findall(r"[\w.,]+", line) for line in done.stdout.splitlines() if "│" in line]
    table = {row[0]: row[1:] for row in rows if row and row[0] in ("LoRTA", "LoRA", "frozen")}
    assert {name: row[0] for name, row in table.items()} == {
        "LoRTA": "90",  # 64 + 16 + 4 heads + 3 layers + 3 matrices
        "LoRA": "1,152",  # 3 layers x 3 matrices x (64 + 64)
        "frozen": "0",
    }
    before = {row[1] for row in table.values()}
    assert len(before) == 1  # a fresh adapter changes nothing
    assert "randomly initialised" in done.stdout
    with (output / "predictions" / "predictions.csv").open() as file:
        assert all(row["status"] == "ok" for row in csv.DictReader(file))


def test_the_demo_never_deletes_what_it_did_not_make(tmp_path: Path):
    (tmp_path / "mine").write_text("mine")
    done = demo(tmp_path)
    assert done.returncode != 0
    assert "no earlier demo" in done.stderr
    assert (tmp_path / "mine").read_text() == "mine"
