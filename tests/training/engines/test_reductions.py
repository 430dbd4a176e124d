"""Processes exchange the gradient of the whole model once in an optimizer step."""

import json
import math
from itertools import chain
from pathlib import Path

import pytest

from tests.nursery import ROOT, Nursery
from tests.training.conftest import words
from tests.training.launching import run_two

# Runs in both processes before training. The profiler sees what DDP sends from C++, too.
COUNTING = """
import json, os
from torch.profiler import ProfilerActivity, profile
from esmfold_peft.training import step as training

step, steps = training.optimizer_step, []

def counted(module, batch, truth):
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        result = step(module, batch, truth)
    sent = [(e.name, e.input_shapes) for e in profiler.events() if e.name.startswith("gloo:")]
    trained = [p for p in module.model.parameters() if p.requires_grad]
    numbers = sum(getattr(p, "ds_numel", p.numel()) for p in trained)
    at_once = min(module.plan.micro_batch, len(batch.ids))
    steps.append({"trained": numbers, "at_once": at_once, "sent": sent})
    with open(f"{FOLDER}/{os.environ['RANK']}.json", "w") as file:
        json.dump(steps, file)
    return result

training.optimizer_step = counted
"""
STAGES = [pytest.param(stage, marks=pytest.mark.proof) for stage in ("zero1", "zero3")]
MESSAGES = 100
"""Numbers of a step's norms, scores and flags are fewer."""


def reduced(step: dict) -> list[int]:
    """How many numbers each call has added up over the processes."""
    return [
        sum(math.prod(shape) for shape in shapes)
        for name, shapes in step["sent"]
        if "reduce" in name
    ]


def steps_of(
    engine: str, micro: int, nursery: Nursery, stores: Path, folder: Path
) -> list[list[dict]]:
    """What each of two processes with four chains has sent in two steps."""
    folder.mkdir()
    flags = ["--engine.batch_size", 8, "--engine.micro_batch", micro, "--engine.steps", 2]
    if engine != "ddp":
        flags += ["--engine.deepspeed", ROOT / "configs" / "deepspeed" / f"{engine}.json"]
    before = f"FOLDER = {str(folder)!r}\n{COUNTING}"
    run_two(nursery, *words(stores, folder / "run", *flags), before=before)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", *STAGES])
def test_the_gradient_is_exchanged_once_a_step_however_many_micro_batches_there_are(
    engine: str, nursery: Nursery, stores: Path, tmp_path: Path
):
    small, whole = (
        steps_of(engine, micro, nursery, stores, tmp_path / str(micro)) for micro in (1, 4)
    )
    for ours, theirs in zip(chain(*small), chain(*whole), strict=True):
        assert (ours["at_once"], theirs["at_once"]) == (1, 4)
        assert reduced(ours) == reduced(theirs)
        assert 0 <= sum(reduced(ours)) - ours["trained"] < MESSAGES
