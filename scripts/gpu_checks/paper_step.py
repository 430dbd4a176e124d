"""An optimizer step of the paper's configuration: time by recycles and parts, memory, operations.

What is timed is the model, the losses, the gradient's norm and Adam, on batches that are on the
device already; not the loader, the scores that `train` logs, or validation.
"""

import statistics
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from measuring import Step, interleaved, peak_memory, ratio, seconds
from torch import nn
from training_step import Training, parts

from esmfold_peft.config import AdapterConfig, Kernels, LossWeights
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.model.build import build_model
from esmfold_peft.model.folding import FoldingModel
from gpu_checks.flops import model_flops, peak_flops
from gpu_checks.models import CLAMP, real_batch, split
from gpu_checks.report import Row, against_goal, measured, skipped
from gpu_checks.running import Context, tidy
from gpu_checks.sizes import settings

GOAL = 1.0
"""Seconds of an optimizer step of 32 chains on one H100."""

RECYCLES = (0, 1, 2, 3)
"""Drawn with equal probability, so that the mean over them is that over steps."""

LORTA = AdapterConfig(kind="lorta", rank=1, alpha=2.0, init="paper")
CLIP = 0.1


@dataclass(frozen=True)
class Setup:
    """How a batch is computed.

    Attributes:
        micro_batch: chains at a time.
        recompute: blocks keep only their inputs for the backward pass.
        kernels: how the Evoformer computes a block.
        pair_track: its type.
        compile: the trunk's blocks.
    """

    micro_batch: int
    recompute: bool
    kernels: Kernels = "fused"
    pair_track: Literal["float32", "bf16"] = "bf16"
    compile: bool = False

    def __str__(self) -> str:
        words = [f"{self.micro_batch} at a time"]
        words += ["recomputing" if self.recompute else "keeping activations"]
        return ", ".join(words + ["compiled"] * self.compile)


def paper_step(context: Context) -> Iterator[Row]:
    """All numbers of the step in the fastest setup."""
    name, sizes, device = step_name(context), context.sizes, context.device
    setup = chosen_setup(context)
    model = paper_model(setup, context)
    batches = [b.to(device) for b in split(batch_of(context), setup.micro_batch)]
    optimizer = adam(model)
    mean = yield from recycle_rows(name, model, batches, optimizer, setup, context)
    yield measured(f"{name}: chains a second", sizes.batch / mean, "chains/s")
    yield from operations(name, training_of(model, batches[0], 0), mean, context)
    peak = peak_memory(optimizer_step([training_of(model, batches[0], 3)], optimizer), device)
    yield measured(f"{name}: peak memory above the model", peak / 2**30, "GiB", detail=str(setup))
    yield from part_rows(name, training_of(model, batches[0], 0), optimizer, context)


def fastest(context: Context) -> Iterator[Row]:
    """Tries more and more chains at a time, recomputing and not; keeps the fastest in `context`."""
    per_chain: dict[Setup, float] = {}
    for recompute in (True, False):
        for size in context.sizes.micro_batches:
            setup = Setup(size, recompute)
            time, row = tried(setup, context)
            yield row
            tidy(context.device)
            if time is None:  # more will not fit either
                break
            per_chain[setup] = time
            context.setup = min(per_chain, key=lambda key: per_chain[key])


def chosen_setup(context: Context) -> Setup:
    """The setup that was fastest; the safest where that is not known."""
    return context.setup or Setup(1, recompute=True)


def recycle_rows(
    name: str,
    model: FoldingModel,
    batches: list[Batch],
    optimizer: torch.optim.Optimizer,
    setup: Setup,
    context: Context,
) -> Generator[Row, None, float]:
    """Times the whole batch by recycles, and returns the mean in seconds.

    Args:
        name: of the rows.
        model: on the device.
        batches: all micro-batches.
        optimizer: of the model.
        setup: for the detail.
        context: see there.
    """
    optimizer_step([training_of(model, batches[0], 1)], optimizer)()  # warms up
    steps = {
        f"{recycles} recycles": optimizer_step(
            [training_of(model, batch, recycles) for batch in batches], optimizer
        )
        for recycles in RECYCLES
    }
    times = interleaved(steps, context.sizes.rounds, context.device)
    medians = {key: statistics.median(own) for key, own in times.items()}
    for key, time in medians.items():
        yield measured(f"{name}, {key}", time, "s", detail=str(setup))
    mean = statistics.mean(medians.values())
    detail = f"recycles 0 to 3, {setup}" + ", tiny: no speed of the model" * context.sizes.tiny
    yield against_goal(f"{name}, mean over recycles", mean, GOAL, "s", detail=detail)
    return mean


def otherwise(context: Context) -> Iterator[Row]:
    """The same step without recycling by openfold3's blocks, and with a float32 pair track."""
    yield from beside("by openfold3", replace(chosen_setup(context), kernels="openfold"), context)
    other = replace(chosen_setup(context), pair_track="float32")
    yield from beside("with a float32 pair track", other, context)


def compiled(context: Context) -> Iterator[Row]:
    """The same step without recycling and compiled, beside the plain one."""
    if context.sizes.tiny:
        yield skipped("step compiled", "tiny: compiling takes a minute of a CPU core")
    else:
        yield from beside("compiled", replace(chosen_setup(context), compile=True), context)


def beside(how: str, setup: Setup, context: Context) -> Iterator[Row]:
    """Time of a setup over that of the plain one, and the seconds of its first step.

    Args:
        how: for the names of the rows.
        setup: the other one.
        context: see there.
    """
    batch = batch_of(context, setup.micro_batch).to(context.device)
    steps: dict[str, Step] = {}
    for key, each in {"plain": chosen_setup(context), how: setup}.items():
        model = paper_model(each, context)
        steps[key] = optimizer_step([training_of(model, batch, 0)], adam(model))
    steps["plain"]()
    name = f"step {how} / plain"
    try:
        first = seconds(steps[how], context.device)
    except torch.OutOfMemoryError:
        yield skipped(name, "does not fit into the card's memory")
        return
    yield measured(f"{name}: first step", first, "s")
    times = interleaved(steps, 2 * context.sizes.rounds + 1, context.device)
    ours = statistics.median(times[how]) / setup.micro_batch
    detail = f"{ours:.3f} s a chain without recycling, {setup}"
    yield measured(name, ratio(times[how], times["plain"]), detail=detail)
    peak = peak_memory(steps[how], context.device)
    yield measured(f"{name}: peak memory", peak / 2**30, "GiB")


def tried(setup: Setup, context: Context) -> tuple[float | None, Row]:
    """Seconds of a chain without recycling, None where it does not fit, and the row.

    Args:
        setup: to try.
        context: see there.
    """
    name = f"{step_name(context)}: a chain, {setup}"
    try:
        model = paper_model(setup, context)
        batch = batch_of(context, setup.micro_batch).to(context.device)
        step = optimizer_step([training_of(model, batch, 0)], adam(model))
        step()  # warms up
        times = [seconds(step, context.device) for _ in range(context.sizes.rounds)]
    except torch.OutOfMemoryError:
        return None, skipped(name, "does not fit into the card's memory")
    time = statistics.median(times) / setup.micro_batch
    return time, measured(name, time, "s", detail="no recycling")


def operations(
    name: str, training: Training, step_seconds: float, context: Context
) -> Iterator[Row]:
    """Operations of the model in a step, and their share of the card's peak.

    Args:
        name: of the rows.
        training: of one micro-batch.
        step_seconds: of the whole batch, mean over recycles.
        context: see there.
    """
    flops = model_flops(training)
    micro_batches = context.sizes.batch / len(training.batch.ids)
    mean = statistics.mean(RECYCLES)
    whole = micro_batches * flops.with_recycles(mean)
    detail = (
        f"matrix products, {mean} recycles on average, without what is recomputed; a recycle is"
        f" {flops.recycle / flops.with_recycles(0):.0%} of forward and backward"
    )
    yield measured(f"{name}: operations of the model", whole / 1e12, "TFLOP", detail=detail)
    cuda = context.device.type == "cuda"
    device = torch.cuda.get_device_name(context.device) if cuda else "CPU"
    peak = peak_flops(device)
    row = f"{name}: share of the peak in bf16"
    if peak is None:
        yield skipped(row, f"no peak is known for {device}")
        return
    detail = f"of {peak / 1e12:.0f} TFLOPS ({device})"
    yield measured(row, 100 * whole / step_seconds / peak, "%", detail=detail)


def part_rows(
    name: str, training: Training, optimizer: torch.optim.Optimizer, context: Context
) -> Iterator[Row]:
    """Forward and backward pass of each part, and Adam, scaled to the whole batch.

    Args:
        name: of the rows.
        training: of one micro-batch, without recycling.
        optimizer: of its model.
        context: see there.
    """
    steps = parts(training)
    for step in steps.values():
        step()  # warms up
    times = interleaved(steps, context.sizes.rounds, context.device)
    scale = context.sizes.batch / len(training.batch.ids)
    for part, own in times.items():
        detail = "forward and backward, no recycling"
        yield measured(f"{name}: {part}", scale * statistics.median(own), "s", detail=detail)
    training.loss(training.fold()).backward()
    time = seconds(lambda: _update(optimizer), context.device)
    yield measured(f"{name}: optimizer", time, "s", detail="gradient's norm and Adam, once")


def paper_model(setup: Setup, context: Context) -> FoldingModel:
    """ESM-2 with LoRTA of rank 1 and the Evoformer, in bfloat16 autocast, for training.

    Args:
        setup: how it computes.
        context: see there.
    """
    paper = context.sizes.paper
    evoformer = replace(paper.evoformer, checkpoint=setup.recompute)
    config = settings(
        replace(paper, evoformer=evoformer, kernels=setup.kernels, pair_track=setup.pair_track),
        precision="bf16",
        weights=LossWeights(),
        adapter=LORTA,
        compile=setup.compile,
    )
    model, _ = build_model(config)
    return model.to(context.device).train()


def batch_of(context: Context, chains: int | None = None) -> Batch:
    """Real crops of full length, on the CPU.

    Args:
        context: see there.
        chains: how many; None takes the whole batch.
    """
    return real_batch(context.sizes.paper_crop, chains or context.sizes.batch)


def training_of(model: FoldingModel, batch: Batch, recycles: int) -> Training:
    """A micro-batch's part of a step, with the losses of initial training.

    Args:
        model: on the batch's device.
        batch: the micro-batch.
        recycles: passes without gradient.
    """
    clamp = torch.full(batch.resolution.shape, CLAMP, device=batch.mask.device)
    return Training(model, batch, recycles, clamp, LossWeights())


def adam(model: FoldingModel) -> torch.optim.Optimizer:
    """As the project trains, at a rate that changes next to nothing.

    Args:
        model: whose trained parameters it has.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.Adam(trained, lr=1e-6, fused=trained[0].device.type == "cuda")


def optimizer_step(trainings: list[Training], optimizer: torch.optim.Optimizer) -> Step:
    """Accumulates the gradients of all micro-batches, and updates.

    Args:
        trainings: one for each micro-batch.
        optimizer: of their model.
    """

    def step() -> None:
        for training in trainings:
            (training.loss(training.fold()) / len(trainings)).backward()
        _update(optimizer)

    return step


def step_name(context: Context) -> str:
    """How the rows begin."""
    return f"paper step, {context.sizes.batch} x {context.sizes.paper_crop}"


def _update(optimizer: torch.optim.Optimizer) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(parameters, CLIP)
    optimizer.step()
    optimizer.zero_grad()
