"""An optimizer step of the paper's configuration: its time, parts, operations and profile.

What is timed is a step of `train` on a batch that is on the device already, without the loader and
what happens between steps.
"""

import statistics
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal
from unittest.mock import patch

import torch
from measuring import interleaved, kernels, milliseconds, peak_memory, seconds
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from training_step import Training, forward_backward, parts

import esmfold_peft.training.step
from esmfold_peft.config import AdapterConfig, Kernels, LossWeights, ModelConfig, TrainConfig
from esmfold_peft.datasets.truth import ground_truth
from esmfold_peft.model.dropout import draw_factors
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.trunks.openfold import Evoformer
from esmfold_peft.model.trunks.tiling import card
from esmfold_peft.runs.build import build_model
from esmfold_peft.training.ema import ExponentialAverage
from esmfold_peft.training.engines.trainer import build_trainer
from esmfold_peft.training.memory_test import attempt, bytes_of_moments
from esmfold_peft.training.plan import Plan, find_plan
from esmfold_peft.training.step import FoldingModule
from gpu_checks.card import model_flops, peaks_of
from gpu_checks.models import real_batch, settings
from gpu_checks.report import Row, against_goal, measured, skipped
from gpu_checks.running import Context, tidy

GOAL, AIM = 2.5, 1.9
"""Seconds of an optimizer step of 32 chains on one H100, mean over 0 to 3 recycles."""

TIMED = (0, 1)
MEAN_RECYCLES = 1.5
"""Recycles that are timed, and the mean of what a step draws: 0 to 3, each as often."""

CLAMP = 10.0  # Å
LORTA = AdapterConfig(kind="lorta", rank=1, alpha=2.0, init="paper")
SLOW_RATE, CURVE_RATE = 1e-6, 1e-3
"""Adam's rate: a timed step shall change next to nothing; a curve shall learn."""

OPERATORS = 10
"""Rows of the operators that take the most time."""

WAYS: dict[str, tuple[Kernels, bool]] = {
    "openfold3": ("openfold", False),
    "fused": ("fused", False),
    "fused, compiled": ("fused", True),
}
"""Kernels of the Evoformer, and whether it is compiled: for each shape, which takes longest."""

TOO_LARGE = "does not fit into the card's memory"
NO_COMPILER = "tiny: compiling takes a minute of a CPU core"

OptimizerStep = Callable[[int], Tensor]
"""One optimizer step with some recycles; gives the mean loss."""


@dataclass(frozen=True)
class Setup:
    """How a batch is computed: compiled or not, replaying CUDA graphs or not."""

    compile: bool = False
    graphs: bool = False
    pair_track: Literal["float32", "bf16"] = "bf16"

    def __str__(self) -> str:
        words = ["compiled" if self.compile else "plain"] + ["CUDA graphs"] * self.graphs
        return ", ".join(words)


class AbsentError(Exception):
    """This machine lacks what a setup needs."""


def optimizer_step(
    setup: Setup,
    context: Context,
    *,
    chains: int | None = None,
    plan: Plan | None = None,
    rate: float = SLOW_RATE,
) -> OptimizerStep:
    """An optimizer step of `train` on real crops: the paper's batch, all chains at a time.

    `chains` and `plan` change these; `rate` is Adam's.

    Raises:
        AbsentError: this machine cannot compute it as `setup` asks.
    """
    if context.device.type == "cpu" and setup.graphs:
        raise AbsentError("absent: needs a GPU")
    if setup.compile and context.sizes.tiny:
        raise AbsentError(NO_COMPILER)
    chains = chains or context.sizes.batch
    batch = real_batch(context.sizes.crop, chains)
    module = training_module(paper_settings(setup, context, chains=chains, rate=rate))
    module.plan = plan or Plan(chains, chains, recompute=False)
    given = batch.to(context.device), ground_truth(batch).to(context.device)

    def step(recycles: int) -> Tensor:
        with patch.object(esmfold_peft.training.step, "recycles_at", lambda *given: recycles):
            module.training_step(given, 0)
        module.start += 1  # the next step draws another dropout
        return module.seen[1].total.mean()

    return step


def training_module(config: TrainConfig) -> FoldingModule:
    """A training that is ready for its first step but for its plan, without a Trainer's loop."""
    model, _ = build_model(config)
    module, trainer = FoldingModule(config, model.train()), build_trainer(config)
    trainer.state.fn = TrainerFn.FITTING
    module.trainer = trainer
    # As `fit` does before its loop.
    trainer.strategy.connect(module)
    trainer.strategy.setup_environment()
    module.setup("fit")
    trainer.strategy.setup(trainer)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    module.average = ExponentialAverage(trained, config.optimizer.ema)
    module.asked_to_stop = lambda: False
    return module


def found_plan(context: Context) -> Plan:
    """The chains at a time that training finds on this device, with all that takes memory on."""
    gpu = context.device.type == "cuda"
    config = paper_settings(Setup(compile=gpu, graphs=gpu), context, chains=context.sizes.batch)
    config = replace(config, run=context.scratch, engine=replace(config.engine, micro_batch="auto"))
    module = training_module(config)
    test = partial(attempt, module)
    plan = find_plan(config, context.device, test, later=bytes_of_moments(module))
    tidy(context.device)
    return plan


def paper_step(context: Context) -> Generator[Row]:
    """The step compiled or not, by CUDA graphs or not; its operations, and its parts plain."""
    name = f"step, {context.sizes.batch} x {context.sizes.crop}"
    plan, means = found_plan(context), dict[Setup, float]()
    for compile, graphs in ((True, True), (True, False), (False, False), (False, True)):
        setup = Setup(compile, graphs)
        mean = yield from timed(f"{name}, {setup}", setup, plan, context)
        if mean is not None:
            means[setup] = mean
            context.setup = min(means, key=lambda key: means[key])
        tidy(context.device)
    model = paper_model(Setup(), context)
    batch = real_batch(context.sizes.crop, plan.micro_batch).to(context.device)
    training = training_of(model, batch, 0)
    yield from operations(name, training, min(means.values()), context)
    steps = parts(training)
    for step in steps.values():
        step()  # warms up
    times = interleaved(steps, context.sizes.rounds, context.device)
    scale = context.sizes.batch / plan.micro_batch
    for part, own in times.items():
        detail = "forward and backward, plain, no recycling"
        yield measured(f"{name}: {part}", scale * statistics.median(own), "s", detail=detail)


def timed(
    title: str, setup: Setup, plan: Plan, context: Context
) -> Generator[Row, None, float | None]:
    """Times the whole batch by recycles; returns the mean over what a step draws, in seconds."""
    device, medians = context.device, dict[int, float]()
    try:
        step = optimizer_step(setup, context, plan=plan)
        yield measured(f"{title}: first step", seconds(partial(step, max(TIMED)), device), "s")
        for recycles in TIMED:
            times = [seconds(partial(step, recycles), device) for _ in range(context.sizes.rounds)]
            medians[recycles] = statistics.median(times)
            row = f"{title}, {recycles} recycles"
            yield measured(row, medians[recycles], "s", detail=f"{plan.micro_batch} at a time")
        peak = peak_memory(partial(step, max(TIMED)), device)
    except AbsentError as error:
        yield skipped(title, str(error))
        return None
    except torch.OutOfMemoryError:
        yield skipped(title, TOO_LARGE)
        return None
    mean = medians[0] + MEAN_RECYCLES * (medians[1] - medians[0])  # passes take equally long
    detail = f"aim {AIM} s; peak {peak / 2**30:.1f} GiB above the model"
    yield against_goal(f"{title}, mean over 0 to 3 recycles", mean, GOAL, "s", detail=detail)
    return mean


def operations(
    name: str, training: Training, step_seconds: float, context: Context
) -> Iterator[Row]:
    """Operations of the model in a step, and their share of the card's peak.

    They are counted on one micro-batch, `training`; `step_seconds` is the mean of a whole batch.
    """
    flops, batch = model_flops(training), context.sizes.batch
    whole = batch / len(training.batch.ids) * flops.with_recycles(MEAN_RECYCLES)
    detail = (
        f"matrix products, {MEAN_RECYCLES} recycles on average; a recycle is"
        f" {flops.recycle / flops.with_recycles(0):.0%} of forward and backward"
    )
    yield measured(f"{name}: operations of the model", whole / 1e12, "TFLOP", detail=detail)
    peak, _ = peaks_of(card(context.device))
    row = f"{name}: share of the peak in bf16"
    if peak is None:
        yield skipped(row, "no peak is known for this device")
    else:
        detail = f"of {peak / 1e12:.0f} TFLOPS, in the fastest of the above"
        yield measured(row, 100 * whole / step_seconds / peak, "%", detail=detail)


def block(context: Context) -> Generator[Row]:
    """One Evoformer block, forward and backward, autocast, bfloat16 pair track, nothing redone."""
    sizes, device = context.sizes, context.device
    one_block = replace(sizes.paper.evoformer, blocks=1, recompute=False)
    for name, (way, compile) in WAYS.items():
        if compile and sizes.tiny:
            yield skipped(f"block, {name}", NO_COMPILER)
            continue
        config = ModelConfig(evoformer=one_block, kernels=way)
        stack = Evoformer(config, compile=compile).to(device).train()
        for chains in sizes.blocks:
            yield _block_of(f"block, {chains} x {sizes.crop}, {name}", stack, chains, context)
            torch.compiler.reset()  # it gives up after a few shapes
            tidy(device)


def _block_of(name: str, stack: Evoformer, chains: int, context: Context) -> Row:
    device, n = context.device, context.sizes.crop
    mask = torch.ones(chains, n, dtype=torch.bool, device=device)

    def update(m: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, torch.bfloat16):
            factors = draw_factors(stack.dropout_sites(n), chains, device)
            tracks = stack(m, z, mask, stack.pack(), factors)
        return tracks.m, tracks.z

    try:
        m = torch.randn(chains, n, stack.config.c_m, device=device)
        z = torch.randn(chains, n, n, stack.config.c_z, device=device, dtype=torch.bfloat16)
        step = partial(forward_backward, stack, update, m, z)
        taken = milliseconds(step, context.sizes.rounds, device)
        peak = peak_memory(step, device)
    except torch.OutOfMemoryError:
        return skipped(name, TOO_LARGE)
    detail = f"peak {peak / 2**30:.2f} GiB above block and inputs"
    return measured(name, taken, "ms", detail=detail)


def profiling(context: Context) -> Generator[Row]:
    """Where the time of a step goes: one micro-batch of the fastest setup, with one recycle."""
    setup, device = context.setup or Setup(), context.device
    chains = found_plan(context).micro_batch
    step = partial(optimizer_step(setup, context, chains=chains), 1)
    for _ in range(2):
        step()  # warms up
    # The profiler slows down what launches kernels, but not the kernels.
    wall, gpu = seconds(step, device), device.type == "cuda"
    detail = f"{chains} chains, 1 recycle, {setup}"
    yield measured("profile: step", 1e3 * wall, "ms", detail=detail)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu
    with profile(activities=activities) as profiler:
        step()
        if gpu:
            torch.cuda.synchronize()
    events = profiler.key_averages()
    if gpu:
        busy = sum(e.self_device_time_total for e in events if e.device_type == DeviceType.CUDA)
        detail = f"kernels {busy / 1e3:.1f} ms of {1e3 * wall:.1f} ms"
        yield measured("profile: GPU busy", busy / 1e4 / wall, "%", detail=detail)
        launched = sum(e.count for e in events if "Launch" in e.key)
        yield measured("profile: launches of the host", launched)
    else:
        yield skipped("profile: GPU busy", "absent: needs a GPU")
        yield measured("profile: operations", kernels(step))
    yield from operator_rows(
        {
            e.key: (e.self_device_time_total if gpu else e.self_cpu_time_total, e.count)
            for e in events
            if e.device_type == DeviceType.CPU
        }
    )


def operator_rows(operators: dict[str, tuple[float, int]]) -> Iterator[Row]:
    """The operators that take the most time, from microseconds (without callees) and calls."""
    total = sum(time for time, _ in operators.values())
    slowest = sorted(operators, key=lambda key: operators[key][0], reverse=True)
    for key in slowest[:OPERATORS]:
        time, calls = operators[key]
        detail = f"{calls} calls, {time / total:.1%} of all"
        yield measured(f"profile: {key}", time / 1e3, "ms", detail=detail)


def pair_track(context: Context) -> Generator[Row]:
    """Loss curves of training with the pair track in float32 and in bfloat16, step by step."""
    chains, steps, windows = context.sizes.curve
    runs = {
        track: optimizer_step(Setup(pair_track=track), context, chains=chains, rate=CURVE_RATE)
        for track in ("float32", "bf16")
    }
    for first in range(0, steps, steps // windows):
        places = range(first, first + steps // windows)
        means = {
            track: float(torch.stack([step(0) for _ in places]).mean())
            for track, step in runs.items()  # dropout is the same in both
        }
        detail = ", ".join(f"{track} {mean:.3f}" for track, mean in means.items())
        yield measured(
            f"pair track, {chains} x {context.sizes.crop}, steps {first + 1} to {places[-1] + 1}:"
            " loss in bf16 / float32",
            means["bf16"] / means["float32"],
            detail=f"mean loss: {detail}",
        )


def paper_model(setup: Setup, context: Context) -> FoldingModel:
    """The model of the paper's configuration, for training."""
    model, _ = build_model(paper_settings(setup, context, chains=context.sizes.batch))
    return model.to(context.device).train()


def paper_settings(
    setup: Setup, context: Context, *, chains: int, rate: float = SLOW_RATE
) -> TrainConfig:
    """ESM-2 with LoRTA of rank 1 and the Evoformer, in bfloat16 autocast."""
    paper = context.sizes.paper
    evoformer = replace(paper.evoformer, recompute=False)
    config = settings(
        replace(paper, evoformer=evoformer, pair_track=setup.pair_track),
        weights=LossWeights(),
        adapter=LORTA,
        precision="bf16",
        accelerator="cpu" if context.device.type == "cpu" else "gpu",
        batch_size=chains,
        compile=setup.compile,
        cuda_graphs=setup.graphs,
    )
    return replace(
        config,
        optimizer=replace(config.optimizer, lr=rate),
        data=replace(config.data, crop=context.sizes.crop),
    )


def training_of(model: FoldingModel, batch, recycles: int) -> Training:
    """A micro-batch's part of a step, with the losses of initial training."""
    clamp = torch.full(batch.resolution.shape, CLAMP, device=batch.mask.device)
    return Training(model, batch, recycles, clamp, LossWeights())
