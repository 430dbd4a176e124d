"""The training scripts start one training of two processes, and a job is requeued when it should.

torchrun and the deepspeed launcher are the real ones. srun and scontrol are stand-ins that do what
Slurm 22.05 does, as far as the script and the training see it.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from esmfold_peft.commands.prepare import run as prepare
from esmfold_peft.config import PrepareConfig
from tests.training.launching import free_port

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
NAMES = ("train_torchrun.sh", "train_deepspeed.sh", "train_slurm.sbatch")

# Two nodes with one task each. Ends, as srun does, with the highest code of its tasks.
SRUN = f"""#!{sys.executable}
import os, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
step = dict(
    SLURM_STEP_ID="0", SLURM_STEP_NUM_TASKS="2", SLURM_STEP_NUM_NODES="2",
    SLURM_STEP_TASKS_PER_NODE="1(x2)", SLURM_STEP_NODELIST="localhost,otherhost", SLURM_LOCALID="0",
)
tasks = [
    subprocess.Popen(command, env=dict(os.environ, **step, SLURM_PROCID=n, SLURM_NODEID=n))
    for n in "01"
]
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = '#!/bin/sh\necho "$@" >> "$REQUEUED"\n'


@pytest.fixture(scope="module")
def chains(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two chains."""
    folder = tmp_path_factory.mktemp("chains")
    files = tuple(example / "train" / f"{name}.cif.gz" for name in ("1hf9_A", "3nir_A"))
    prepare(PrepareConfig(files, folder, clusters="none", workers=1))
    return folder


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a batch script whose srun and scontrol are stand-ins."""
    folder = tmp_path_factory.mktemp("bin")
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "4217", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_NNODES": "2"}
    return job | {
        "PATH": f"{folder}:{os.environ['PATH']}", "REQUEUED": str(folder / "requeued"),
    }  # fmt: skip


def finished(
    script: str, arguments: list[object], environment: dict[str, str]
) -> subprocess.CompletedProcess:
    """Runs one of the scripts to its end."""
    # What a launcher around the tests says is not for them.
    own = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    more = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.run(
        ["bash", SCRIPTS / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=own | more | environment,
        timeout=300,
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_script_is_bash_that_anybody_may_run(name: str):
    subprocess.run(["bash", "-n", SCRIPTS / name], check=True)
    assert os.access(SCRIPTS / name, os.X_OK)


def losses(run: Path) -> list[float]:
    """The column train/loss of metrics.csv."""
    with (run / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.mark.proof
def test_every_launcher_starts_the_same_training(chains: Path, slurm: dict, tmp_path: Path):
    flags = [
        "--config", ROOT / "configs" / "tiny.yaml", "--data.train", chains, "--data.crop", 16,
        "--model.evoformer.blocks", 1, "--model.structure.layers", 1, "--engine.steps", 2,
        "--engine.batch_size", 2, "--engine.micro_batch", 1, "--log.every", 1,
        "--optimizer.warmup_steps", 0, "--optimizer.eps", "1e-3",
    ]  # fmt: skip
    zero = ["--engine.deepspeed", "configs/deepspeed/zero2.json"]
    # Other tests of this machine may train at the same time and take the ports of all defaults.
    port = str(free_port())
    two, meeting = {"PROCESSES": "2", "PORT": port}, slurm | {"MASTER_PORT": port}
    runs = {}
    for name, more, environment in zip(NAMES, ([], zero, []), (two, two, meeting), strict=True):
        run = tmp_path / name
        done = finished(name, [*flags, *more, "--run", run], environment)
        assert done.returncode == 0, done.stderr
        runs[name] = losses(run)
    # One process alone would not divide a batch of two as two processes do, nor log it once.
    torchrun, deepspeed, srun = runs.values()
    assert len(torchrun) == 2
    assert deepspeed == pytest.approx(torchrun, rel=1e-4)
    assert srun == pytest.approx(torchrun, rel=1e-4)


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (3, False), (75, True)])
def test_a_job_is_requeued_exactly_when_it_can_be_resumed(
    code: int, requeued: bool, slurm: dict, tmp_path: Path
):
    program, calls = tmp_path / "python", tmp_path / "calls"
    program.write_text(f'#!/bin/sh\necho "$@"\n[ "$SLURM_PROCID" = 1 ] && exit {code}\nexit 0\n')
    program.chmod(0o755)
    environment = slurm | {"PYTHON": str(program), "REQUEUED": str(calls)}
    done = finished("train_slurm.sbatch", ["--run", "a run"], environment)
    assert done.returncode == code
    assert (calls.read_text() if calls.exists() else "") == ("requeue 4217\n" if requeued else "")
    assert done.stdout == "-m esmfold_peft train --run a run --resume auto\n" * 2
