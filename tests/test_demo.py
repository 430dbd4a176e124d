"""`make demo` on fewer steps and chains, and the model that it ships."""

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import esmfold_peft

ROOT = Path(__file__).parents[1]
NANO = ROOT / "data" / "nano"


def demo(output: Path, *flags: str) -> subprocess.CompletedProcess:
    """Runs the demo in a process of its own."""
    command = [sys.executable, str(ROOT / "scripts" / "demo.py"), "--output", str(output), *flags]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.proof
def test_the_demo_ends_with_tables_and_structures(tmp_path: Path):
    output = tmp_path / "demo"
    done = demo(output, "--steps", "6", "--held-out", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [re.findall(r"[\w.,-]+", line) for line in done.stdout.splitlines() if "│" in line]
    table = {row[0]: row[1:] for row in rows if row}
    assert {name: table[name][0] for name in ("LoRTA", "LoRA", "frozen")} == {
        "LoRTA": "195",  # 160 + 16 + 10 heads + 6 layers + 3 matrices
        "LoRA": "5,760",  # 6 layers x 3 matrices x (160 + 160)
        "frozen": "0",
    }
    before = {tuple(table[name][1:4:2]) for name in ("LoRTA", "LoRA", "frozen")}
    assert len(before) == 1  # a fresh adapter changes nothing
    assert 0 <= float(table["1ubq_A"][-1]) <= 1
    assert table["3wwv_A"][-1] == "-"  # its structure is not here
    assert "A rise is a gain" in done.stdout
    with (output / "predictions" / "predictions.csv").open() as file:
        assert all(row["status"] == "ok" for row in csv.DictReader(file))
    assert (output / "predictions" / "index.html").is_file()


def test_the_demo_never_deletes_what_it_did_not_make(tmp_path: Path):
    (tmp_path / "mine").write_text("mine")
    done = demo(tmp_path)
    assert done.returncode != 0
    assert "no earlier demo" in done.stderr
    assert (tmp_path / "mine").read_text() == "mine"


def test_the_shipped_base_folds_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert sum(path.stat().st_size for path in NANO.rglob("*")) <= 8 * 2**20
    assert "    weights: ../esm2.pt\n" in (NANO / "base" / "config.yaml").read_text()
    shutil.copytree(NANO, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    prediction = esmfold_peft.load("moved/base").fold("MKTAYIAKQRQISFVK")
    assert prediction.plddt.shape == (16,)
