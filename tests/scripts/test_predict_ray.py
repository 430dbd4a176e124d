"""`scripts/predict_ray.py` on a Ray that runs on this machine."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from esmfold_peft.commands.predict import run as predict
from esmfold_peft.config import PredictConfig
from tests.prediction.conftest import assert_same, make_run

SCRIPT = Path(__file__).parents[2] / "scripts" / "predict_ray.py"
SEQUENCES = {"a": "MKTAYIAKQR", "b": "GSHMW", "bad": "MK1", "c": "ACDEFGHIKLMNPQRSTVWY:GG"}


def on_ray(*words: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, SCRIPT, *words]
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, timeout=240
    )


@pytest.mark.proof
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_workers_do_what_one_process_does(tmp_path: Path):
    run = make_run(tmp_path / "run")
    fasta = tmp_path / "x.fasta"
    fasta.write_text("".join(f">{name}\n{text}\n" for name, text in SEQUENCES.items()))
    assert predict(PredictConfig((fasta,), tmp_path / "one", run, device="cpu")) == 1
    words = [fasta, "--run", run, "--output", tmp_path / "many", "--device", "cpu"]
    done = on_ray("--workers", 2, "--gpus", 0, "--cpus", 0.5, *words)
    assert done.returncode == 1, done.stderr
    assert "3 structures in" in done.stdout + done.stderr
    assert_same(tmp_path / "many", tmp_path / "one")


@pytest.mark.slow
def test_a_wrong_flag_is_reported_before_ray_starts(tmp_path: Path):
    done = on_ray("--workers", 0, "x.fasta", "--run", "r", "--output", "o")
    assert done.returncode == 2
    assert "--workers: 0 is less than 1" in done.stderr
