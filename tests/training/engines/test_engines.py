"""The same training on every engine: the same losses, the same tensors, the same clip."""

import csv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.nursery import ROOT, Nursery
from tests.training.conftest import words
from tests.training.launching import run_two

STEPS = 20
FACTORS = ("a", "b", "c_h", "c_l", "c_m")
# `test_engine_state.py` looks into every engine; whole trainings tell the two ends apart.
BETWEEN = [pytest.param(engine, marks=pytest.mark.proof) for engine in ("zero1", "zero2")]
# With these a parameter's first step is its clipped gradient.
GRADIENT = (
    *("--optimizer.lr", 1e3, "--optimizer.eps", 1e3, "--optimizer.eps_adapter", "null"),
    *("--optimizer.warmup_steps", 0, "--guard.update_limit", 0),
    *("--optimizer.schedule", "constant", "--engine.steps", 1),
)  # fmt: skip


def losses(run: Path) -> list[float]:
    return [row["train/loss"] for row in metrics(run)]


def metrics(run: Path) -> list[dict[str, float]]:
    """The lines of metrics.csv without empty cells."""
    with (run / "metrics.csv").open() as file:
        return [{n: float(v) for n, v in row.items() if v} for row in csv.DictReader(file)]


def checkpoint(run: Path, step: int) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by file and name."""
    folder = run / "checkpoints" / f"step_{step:08d}"
    files = ("weights", "ema", "adam")
    return {f"{f}/{n}": t for f in files for n, t in load_file(folder / f"{f}.safetensors").items()}


def deepspeed(engine: str) -> list[object]:
    if engine == "ddp":
        return []
    return ["--engine.deepspeed", ROOT / "configs" / "deepspeed" / f"{engine}.json"]


@pytest.fixture(scope="module")
def single(nursery: Nursery, stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty steps in one process, and one step that is the gradient."""
    folder = tmp_path_factory.mktemp("single")
    nursery.run(*words(stores, folder / "run", "--engine.steps", STEPS))
    nursery.run(*words(stores, folder / "start", "--engine.steps", 0))
    nursery.run(*words(stores, folder / "gradient", *GRADIENT))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", *BETWEEN, "zero3"])
def test_two_processes_of_every_engine_train_as_one(
    engine: str, nursery: Nursery, stores: Path, single: Path, tmp_path: Path
):
    flags = [*deepspeed(engine)]
    run_two(nursery, *words(stores, tmp_path / "run", *flags, "--engine.steps", STEPS))
    assert losses(tmp_path / "run") == pytest.approx(losses(single / "run"), rel=1e-4)
    for ours, theirs in zip(metrics(tmp_path / "run"), metrics(single / "run"), strict=True):
        compared = [n for n in theirs if n.startswith(("gradient_share/", "update/", "damping/"))]
        assert len(compared) == 3 + 1 + len(FACTORS) + 2
        assert {n: ours[n] for n in compared} == pytest.approx(
            {n: theirs[n] for n in compared}, rel=1e-2, abs=1e-9
        )
    ours, theirs = (checkpoint(run, STEPS) for run in (tmp_path / "run", single / "run"))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name].double(), tensor.double(), rtol=1e-3, atol=1e-4), name
    # The frozen language model is in no checkpoint, and a shared factor is there once.
    of_language_model = {n for n in ours if n.startswith("weights/language_model.")}
    assert of_language_model == {f"weights/language_model.adapter.{name}" for name in FACTORS}
    # DeepSpeed's own files are not needed to read it.
    assert {path.suffix for path in (tmp_path / "run").rglob("*.*")} <= {
        *(".safetensors", ".json", ".csv", ".yaml"),
        "",
    }


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["single", "ddp", *BETWEEN, "zero3"])
def test_the_clip_of_the_settings_is_the_one_that_is_applied(
    engine: str, nursery: Nursery, stores: Path, single: Path, tmp_path: Path
):
    run = single / "gradient"
    if engine != "single":
        run = tmp_path / "run"
        run_two(nursery, *words(stores, run, *GRADIENT, *deepspeed(engine)))
    moved, start = (load_file(r / "model.safetensors") for r in (run, single / "start"))
    raw = load_file(run / "checkpoints" / "step_00000001" / "weights.safetensors")
    assert moved.keys() == raw.keys()
    squares = sum(float((raw[n].double() - start[n].double()).square().sum()) for n in raw)
    with (run / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["gradient/total"]) > 1  # 0.3 is asked for in tiny.yaml
    assert squares**0.5 == pytest.approx(0.3, rel=1e-3)


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_micro_batch(
    nursery: Nursery, stores: Path, tmp_path: Path
):
    flags = ["--engine.batch_size", 8, "--engine.steps", 3, "--optimizer.eps", 1e-3]
    sizes = (1, 2, 3, 8, "auto")
    for micro in sizes:
        run = tmp_path / str(micro)
        nursery.run(*words(stores, run, *flags, "--engine.micro_batch", micro))
    theirs = checkpoint(tmp_path / "8", 3)
    for micro in sizes:
        run = tmp_path / str(micro)
        assert losses(run) == pytest.approx(losses(tmp_path / "8"), rel=1e-5)
        for name, tensor in checkpoint(run, 3).items():
            other = theirs[name].double()
            assert torch.allclose(tensor.double(), other, rtol=1e-3, atol=1e-5), (micro, name)
