"""The commands on the device: training learns, DeepSpeed computes the same, a run resumes, and
predictions are the CPU's."""

import csv
import itertools
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch
from gpu_checks.models import settings
from safetensors.torch import load_file
from torch import Tensor

from esmfold_peft.cli import main
from esmfold_peft.config import LossWeights
from esmfold_peft.config.parsing import config_text
from esmfold_peft.protein.fasta import read_fasta
from tests.gpu.conftest import Scale

SAME_LOSS = 1e-3
"""Relative; other orders of sums are 1e-6, a wrongly scaled gradient 1e-1 after a few steps."""

SAME_MOVE = 0.02
"""Distance of two runs' weights as a share of what training moved them: a GPU adds gradients up in
another order each time, and Adam's first steps follow their signs."""

SAME_POSITIONS = 0.02
"""Å between the same atoms of two files, which round to 0.001 Å."""

SEQUENCES = 3


def command(*words: object) -> None:
    """Runs a command in this process, which saves importing PyTorch again."""
    assert main([str(word) for word in words]) == 0


def command_apart(*words: object) -> None:
    """Runs a command in a process of its own: one that changes the process, or may break a GPU."""
    arguments = [sys.executable, "-m", "esmfold_peft", *map(str, words)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


@dataclass(frozen=True)
class Runs:
    """Runs of one model on the example's chains, each trained when it is first asked for."""

    folder: Path
    example: Path
    scale: Scale
    device: torch.device

    @property
    def accelerator(self) -> str:
        return "cpu" if self.device.type == "cpu" else "gpu"

    @cached_property
    def store(self) -> Path:
        store = self.folder / "chains"
        words = ("--output", store, "--clusters", "none", "--workers", 1)
        command("prepare", self.example / "train", *words)
        return store

    @cached_property
    def settings(self) -> Path:
        file = self.folder / "settings.yaml"
        file.write_text(config_text(settings(self.scale.trained, weights=LossWeights())))
        return file

    def words(self, run: Path, steps: int) -> list[object]:
        return [
            "train", "--config", self.settings, "--run", run, "--data.train", self.store,
            "--data.crop", self.scale.crop, "--engine.steps", steps,
            "--engine.accelerator", self.accelerator, "--engine.batch_size", 3,
            "--engine.micro_batch", 3, "--log.every", 1, "--engine.validate_every", 10_000,
        ]  # fmt: skip

    def train(self, name: str, steps: int, *flags: object) -> Path:
        run = self.folder / name
        if not (run / "model.safetensors").exists():
            command(*self.words(run, steps), *flags)
        return run

    def learned(self) -> Path:
        """In bfloat16, until it has learnt."""
        adam = ("--optimizer.eps", "1e-5", "--optimizer.warmup_steps", 5)
        return self.train("learned", self.scale.steps, "--engine.precision", "bf16", *adam)

    def straight(self) -> Path:
        """In float32; others are compared with it."""
        return self.train("straight", self.scale.compared_steps)

    def apart(self, run: Path) -> float:
        """Distance of a run's weights from the straight run's, as a share of what moved."""
        runs = (run, self.straight(), self.train("untrained", 0))
        return share(*(load_file(run / "model.safetensors") for run in runs))


def share(found: dict[str, Tensor], expected: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    """Norm of the difference of all weights over the norm of what they moved; NaN if neither."""
    if found.keys() != expected.keys():
        return float("nan")
    difference = sum(float((found[k] - v).double().square().sum()) for k, v in expected.items())
    moved = sum(float((start[k] - v).double().square().sum()) for k, v in expected.items())
    return (difference / moved) ** 0.5 if moved else float("nan")


@pytest.fixture(scope="module")
def runs(device, scale, example, tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("gpu"), example, scale, device)


def column(run: Path, name: str) -> list[float]:
    """A column of a run's metrics.csv, without empty cells."""
    with (run / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.mark.gpu
def test_training_lowers_the_loss_and_raises_lddt(runs: Runs, scale: Scale, at_most):
    loss, score = (column(runs.learned(), f"train/{name}") for name in ("loss", "lddt_ca"))
    assert len(loss) == scale.steps
    first, last = (statistics.mean(part) for part in (loss[: scale.ends], loss[-scale.ends :]))
    at_most("loss, end / start", last / first, scale.largest_loss)
    first, last = (statistics.mean(part) for part in (score[: scale.ends], score[-scale.ends :]))
    at_most("least gain of lDDT-Cα", scale.least_gain, last - first)


@pytest.mark.gpu
def test_deepspeed_zero_2_is_the_plain_engine(runs: Runs, scale: Scale, at_most):
    file, run = runs.folder / "zero2.json", runs.folder / "zero2"
    content = {"zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True}
    file.write_text(json.dumps(content))
    plain = column(runs.straight(), "train/loss")
    # DeepSpeed leaves a process group behind, with which other code computes otherwise.
    command_apart(*runs.words(run, scale.compared_steps), "--engine.deepspeed", file)
    found = column(run, "train/loss")
    off = max(abs(a - b) / abs(b) for a, b in zip(found, plain, strict=True))
    at_most("losses", off, SAME_LOSS)
    at_most("weights", runs.apart(run), SAME_MOVE)


@pytest.mark.gpu
def test_a_resumed_run_ends_where_one_without_a_break_does(runs: Runs, scale: Scale, at_most):
    run = runs.train("resumed", scale.compared_steps // 2)
    command_apart(*runs.words(run, scale.compared_steps), "--resume", "auto")
    limit = 1e-4 if runs.accelerator == "cpu" else SAME_MOVE
    at_most("weights", runs.apart(run), limit)


@pytest.fixture(scope="module")
def fasta(runs: Runs) -> Path:
    """The example's first sequences."""
    path = runs.folder / "sequences.fasta"
    records = itertools.islice(read_fasta([runs.example / "sequences.fasta"]), SEQUENCES)
    path.write_text("".join(f">{record.header}\n{record.sequence}\n" for record in records))
    return path


def predicted(
    fasta: Path, run: Path, accelerator: str, output: Path, *flags: object
) -> tuple[list[dict[str, str]], list[np.ndarray]]:
    """The lines of predictions.csv, and the atoms of each mmCIF file (atoms, 3) in Å."""
    words = ("--run", run, "--output", output, "--device", accelerator)
    command("predict", fasta, *words, *flags)
    with (output / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    places = []
    for row in rows:
        structure = gemmi.read_structure(str(output / row["mmcif"]))
        atoms = [atom.pos.tolist() for residue in structure[0][0] for atom in residue]
        places.append(np.array(atoms))
    return rows, places


@pytest.mark.gpu
def test_predictions_in_bfloat16_are_finite(runs: Runs, fasta: Path):
    output = runs.folder / "predicted"
    rows, places = predicted(fasta, runs.learned(), runs.accelerator, output)
    assert [row["status"] for row in rows] == ["ok"] * SEQUENCES
    assert all(0 <= float(row["plddt"]) <= 100 for row in rows)
    assert all(np.isfinite(atoms).all() for atoms in places)


@pytest.mark.gpu
def test_predictions_in_float32_are_the_cpus(runs: Runs, fasta: Path, at_most):
    run, once = runs.straight(), ("--num_recycles", 0)
    _, here = predicted(fasta, run, runs.accelerator, runs.folder / "here", *once)
    # One at a time: on a CPU that is another path than a padded batch.
    alone = (*once, "--max_tokens_per_batch", 1)
    _, there = predicted(fasta, run, "cpu", runs.folder / "on_cpu", *alone)
    pairs = zip(here, there, strict=True)
    off = max(float(np.linalg.norm(a - b, axis=1).max()) for a, b in pairs)
    at_most("Å", off, SAME_POSITIONS)


def test_weights_are_compared_with_how_far_they_moved():
    start, end = {"w": torch.zeros(4)}, {"w": torch.full((4,), 2.0)}
    assert share(end, end, start) == 0
    assert share({"w": end["w"] + torch.tensor([0.0, 0.0, 0.0, 0.4])}, end, start) == (
        pytest.approx(0.1)
    )
    assert not share(end, start, start) <= 1e9  # nothing moved: no number passes
