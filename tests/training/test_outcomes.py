"""How a training ends that does not go well, and what is left to find out why."""

import csv
import json
import math
from pathlib import Path

import pytest
from safetensors.torch import load_file

from esmfold_peft.runs.checkpoint import checkpoint_steps
from tests.nursery import Nursery
from tests.training.conftest import words

BROKEN_CHAIN = """
import torch
from dataclasses import replace
import esmfold_peft.training.passes as passes
fold_loss, predict, learn = passes.fold_loss, passes.Passes.loss, passes.Passes.differentiate
ids = []
def noted(run):
    def noting(self, chains, *arguments, **settings):
        ids[:] = chains.batch.ids
        return run(self, chains, *arguments, **settings)
    return noting
passes.Passes.loss, passes.Passes.differentiate = noted(predict), noted(learn)
def broken(output, truth, weights, **settings):
    terms = fold_loss(output, truth, weights, **settings)
    bad = torch.tensor([name == "3nir_A" for name in ids])
    fape = torch.where(bad, {value}, terms.terms["backbone_fape"])
    total = torch.where(bad, {value}, terms.total)
    return replace(terms, total=total, terms=terms.terms | {{"backbone_fape": fape}})
passes.fold_loss = broken
"""
EXPLOSION = """
from dataclasses import replace
import esmfold_peft.training.passes as passes
fold_loss, steps = passes.fold_loss, []
def exploding(output, truth, weights, **settings):
    terms = fold_loss(output, truth, weights, **settings)
    steps.append(0)
    return replace(terms, total=terms.total * (1 if len(steps) < 16 else 5))
passes.fold_loss = exploding
"""
OUT_OF_MEMORY = """
import torch
from esmfold_peft.model.folding import FoldingModel
def forward(self, *arguments, **settings):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
FoldingModel.forward = forward
"""


def status(run: Path) -> dict:
    return json.loads((run / "status.json").read_text())


def losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("value", ["torch.nan", "torch.inf"])
def test_a_step_whose_loss_is_not_finite_is_skipped_named_and_kept(
    value: str, nursery: Nursery, stores: Path, tmp_path: Path
):
    run = tmp_path / "run"
    printed = nursery.run(
        *words(stores, run, "--engine.steps", 6), before=BROKEN_CHAIN.format(value=value)
    )
    skipped = [step for step, loss in enumerate(losses(run), 1) if not math.isfinite(loss)]
    assert 0 < len(skipped) < 6
    found = status(run)
    assert (found["status"], found["skipped_steps"]) == ("converged", len(skipped))
    assert f"step {skipped[0]}: the loss is not finite (3nir_A: backbone_fape is" in printed
    folders = sorted(path.name for path in (run / "nonfinite").iterdir())
    assert folders == [f"step_{step:08d}" for step in skipped]
    model = load_file(run / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in model.values())
    # Adam counts what was learnt, not what was tried.
    adam = load_file(run / "checkpoints" / "step_00000006" / "adam.safetensors")
    assert {int(t) for n, t in adam.items() if n.endswith("/step")} == {6 - len(skipped)}

    evidence = run / "nonfinite" / folders[0] / "rank_0.safetensors"
    again = nursery.run(
        "train", "--replay", evidence, before=BROKEN_CHAIN.format(value=value), code=1
    )
    assert "3nir_A: backbone_fape is" in again
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(evidence.read_bytes())
    assert "is not in the folder of a run" in nursery.run("train", "--replay", moved, code=2)
    # Without what breaks it, the step is done as it would have been.
    assert "all is finite this time" in nursery.run("train", "--replay", evidence)


def test_a_run_of_nothing_finite_has_diverged(nursery: Nursery, stores: Path, tmp_path: Path):
    run = tmp_path / "run"
    arguments = words(stores, run, "--engine.steps", 30, "--guard.nonfinite_steps", 3)
    everything = BROKEN_CHAIN.format(value="torch.nan").replace('name == "3nir_A"', "True")
    printed = nursery.run(*arguments, before=everything, code=3)
    found = status(run)
    assert (found["status"], found["rule"]) == ("diverged", "nonfinite")
    assert (found["since"], found["step"], found["skipped_steps"]) == (1, 3, 3)
    assert "diverged at step 3" in printed
    # It is over, also if the command is given again.
    again = nursery.run(*arguments, "--resume", "auto", code=3)
    assert "has ended before: diverged" in again


def test_a_loss_that_explodes_has_diverged(nursery: Nursery, stores: Path, tmp_path: Path):
    run = tmp_path / "run"
    guard = ["--guard.smoothing", 2, "--guard.loss_steps", 4, "--optimizer.lr", 1e-5]
    arguments = words(stores, run, "--engine.steps", 40, *guard)
    nursery.run(*arguments, before=EXPLOSION, code=3)
    found = status(run)
    assert (found["status"], found["rule"]) == ("diverged", "loss")
    assert found["step"] < 16
    # What was good is still there.
    assert checkpoint_steps(run)[0] <= found["since"]


def test_a_score_below_the_floor_has_diverged(nursery: Nursery, stores: Path, tmp_path: Path):
    run = tmp_path / "run"
    guard = ["--guard.score_step", 3, "--guard.score_floor", 0.9]
    nursery.run(*words(stores, run, "--engine.steps", 12, *guard), code=3)
    found = status(run)
    assert (found["rule"], found["step"]) == ("score", 4)
    assert "below the floor of 0.9" in found["message"]
    assert found["best"]["step"] == 4


def test_a_language_model_that_is_written_over_has_diverged(
    nursery: Nursery, stores: Path, tmp_path: Path
):
    run = tmp_path / "run"
    flags = ["--adapter.alpha", 1e6, "--adapter.init", "paper", "--engine.steps", 12]
    nursery.run(*words(stores, run, *flags), code=3)
    found = status(run)
    assert (found["status"], found["rule"]) == ("diverged", "update")
    assert "x the matrix at step" in found["message"]
    # Nothing else tells it: without the rule the run is as good as any other.
    assert all(math.isfinite(loss) for loss in losses(run))
    flags += ["--guard.update_limit", 0]
    nursery.run(*words(stores, tmp_path / "unguarded", *flags))
    assert status(tmp_path / "unguarded")["status"] == "converged"
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "unguarded"))


def test_little_learnt_is_a_plateau_and_no_failure(nursery: Nursery, stores: Path, tmp_path: Path):
    run = tmp_path / "run"
    guard = ["--guard.plateau_steps", 4, "--guard.smoothing", 2, "--guard.plateau_gain", 0.5]
    nursery.run(*words(stores, run, "--engine.steps", 12, *guard))
    assert status(run)["status"] == "plateau"


def test_too_little_memory_names_what_helps(nursery: Nursery, stores: Path, tmp_path: Path):
    run = tmp_path / "run"
    flags = ["--engine.steps", 2, "--engine.micro_batch", 2]
    printed = nursery.run(*words(stores, run, *flags), before=OUT_OF_MEMORY, code=2)
    last = printed.strip().splitlines()[-1]
    assert "data.crop 16 and engine.micro_batch 2" in last
    assert "a smaller engine.micro_batch" in last
    assert "model.evoformer.recompute true" in last
    assert "Traceback" not in printed
    assert status(run)["status"] == "failed"
