"""Training by the command itself: it learns, DeepSpeed computes the same, and a run goes on."""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor
from training_step import EXAMPLE

from esmfold_peft.config import LossWeights
from esmfold_peft.config.parsing import config_text
from gpu_checks.commands import column, command, command_apart, weights
from gpu_checks.report import Row, at_least, at_most
from gpu_checks.running import Context
from gpu_checks.sizes import settings

SAME_LOSS = 1e-3
"""Relative; other orders of sums are 1e-6, a wrongly scaled gradient 1e-1 after a few steps."""

SAME_MOVE = 0.02
"""Distance of two runs' weights as a share of what training moved them: a GPU adds gradients up in
another order each time, and Adam's first steps follow their signs."""

ZERO2_SECONDS = 100.0
RESUME_SECONDS = 60.0  # in a process of its own: what breaks a GPU there must not break it here


def learning(context: Context) -> Iterator[Row]:
    """Training in bfloat16 on the example's chains lowers the loss and raises lDDT-Cα."""
    sizes, run = context.sizes, learned(context)
    loss, score = (column(run, f"train/{name}") for name in ("loss", "lddt_ca"))
    name = f"training, bf16, {sizes.steps} steps"
    yield at_least(f"{name}: steps logged", len(loss), sizes.steps)
    first, last = (statistics.mean(part) for part in ends(loss, sizes.learning))
    detail = f"loss {first:.2f} to {last:.2f}, means of {sizes.learning} steps"
    yield at_most(f"{name}: loss, end / start", last / first, sizes.largest_loss, detail=detail)
    first, last = (statistics.mean(part) for part in ends(score, sizes.learning))
    detail = f"{first:.3f} to {last:.3f}"
    yield at_least(f"{name}: gain of lDDT-Cα", last - first, sizes.least_gain, detail=detail)


def zero2(context: Context) -> Iterator[Row]:
    """DeepSpeed ZeRO 2 on one device has the losses of the plain engine."""
    steps = context.sizes.compared_steps
    plain = column(straight(context), "train/loss")
    settings_file = context.scratch / "zero2.json"
    content = {"zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True}
    settings_file.write_text(json.dumps(content))
    run = context.scratch / "zero2"
    # DeepSpeed leaves a process group behind, with which other code computes otherwise.
    words = [*train_words(context, run, steps), "--engine.deepspeed", settings_file]
    command_apart(*words, seconds=ZERO2_SECONDS)
    found = column(run, "train/loss")
    yield at_least("DeepSpeed ZeRO 2: steps logged", len(found), steps)
    off = max(abs(a - b) / abs(b) for a, b in zip(found, plain, strict=True))
    yield at_most(
        "DeepSpeed ZeRO 2: losses", off, SAME_LOSS, detail=f"float32, {steps} steps, relative"
    )
    yield at_most(
        "DeepSpeed ZeRO 2: weights", apart(context, run, straight(context)), SAME_MOVE,
        detail="share of what training moved them",
    )  # fmt: skip


def resuming(context: Context) -> Iterator[Row]:
    """A run that is continued ends where one without a break does."""
    steps = context.sizes.compared_steps
    whole = straight(context)
    run = train(context, "resumed", steps // 2)
    words = train_words(context, run, steps)
    command_apart(*words, "--resume", "auto", seconds=RESUME_SECONDS)
    cpu = context.device.type == "cpu"
    limit = 0.0 if cpu else SAME_MOVE
    detail = f"{steps // 2} steps, then to {steps}; share of what training moved them"
    yield at_most("resumed run: weights", apart(context, run, whole), limit, detail=detail)


def learned(context: Context) -> Path:
    """The run in bfloat16 that learns, made when it is first asked for."""
    flags = ("--engine.precision", "bf16", "--optimizer.eps", "1e-5", "--optimizer.warmup_steps", 5)
    return train(context, "learned", context.sizes.steps, *flags)


def straight(context: Context) -> Path:
    """The float32 run with which others are compared, made when it is first asked for."""
    return train(context, "straight", context.sizes.compared_steps)


def train(context: Context, name: str, steps: int, *flags: object) -> Path:
    """Trains in this process, unless that is done, and returns the run's folder.

    Args:
        context: see there.
        name: of the run.
        steps: optimizer steps.
        flags: more of them.
    """
    run = context.scratch / name
    if not (run / "model.safetensors").exists():
        command(*train_words(context, run, steps), *flags)
    return run


def train_words(context: Context, run: Path, steps: int) -> list[object]:
    """The command line of a training.

    Args:
        context: see there.
        run: its folder.
        steps: optimizer steps.
    """
    file = context.scratch / "settings.yaml"
    if not file.exists():
        file.write_text(config_text(settings(context.sizes.training, weights=LossWeights())))
    return [
        "train", "--config", file, "--run", run, "--data.train", store(context),
        "--data.crop", context.sizes.crop, "--engine.steps", steps,
        "--engine.accelerator", "cpu" if context.device.type == "cpu" else "gpu",
        "--engine.batch_size", 3, "--engine.micro_batch", 3, "--log.every", 1,
        "--engine.validate_every", 10_000,
    ]  # fmt: skip


def store(context: Context) -> Path:
    """The store of the example's training chains, made when it is first asked for."""
    folder = context.scratch / "chains"
    if not (folder / "manifest.csv").exists():
        words = ("--output", folder, "--clusters", "none", "--workers", 1)
        command("prepare", EXAMPLE / "train", *words)
    return folder


def ends(values: list[float], count: int) -> tuple[list[float], list[float]]:
    """The first and the last values of a column.

    Args:
        values: of a column.
        count: how many of each.
    """
    return values[:count], values[-count:]


def apart(context: Context, run: Path, other: Path) -> float:
    """Distance of two runs' weights as a share of what training moved the second.

    Args:
        context: see there.
        run: folder of one.
        other: folder of the other.
    """
    untrained = train(context, "untrained", 0)
    return share(weights(run), weights(other), weights(untrained))


def share(found: dict[str, Tensor], expected: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    """Norm of the difference of all weights over the norm of what they moved.

    Args:
        found: by name.
        expected: the same names.
        start: where both began.
    """
    if found.keys() != expected.keys():
        return float("nan")
    difference = sum(float((found[k] - v).double().square().sum()) for k, v in expected.items())
    moved = sum(float((start[k] - v).double().square().sum()) for k, v in expected.items())
    return (difference / moved) ** 0.5 if moved else float("nan")
