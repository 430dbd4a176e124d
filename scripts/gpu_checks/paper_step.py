"""An optimizer step of the paper's configuration: how it is made, its time, parts and operations.

What is timed is a step of `train` on a batch that is on the device already; not the loader and what
happens between steps.
"""

import statistics
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal
from unittest.mock import patch

import torch
from measuring import interleaved, peak_memory, seconds
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from training_step import Training, parts

import esmfold_peft.training.step
from esmfold_peft.config import AdapterConfig, LossWeights, TrainConfig
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.datasets.truth import ground_truth
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.trunks.tiling import card
from esmfold_peft.runs.build import build_model
from esmfold_peft.training.ema import ExponentialAverage
from esmfold_peft.training.engines.trainer import build_trainer
from esmfold_peft.training.module import FoldingModule
from esmfold_peft.training.plan import Plan
from gpu_checks.flops import model_flops, peaks_of
from gpu_checks.models import CLAMP, real_batch
from gpu_checks.report import Row, against_goal, measured, skipped
from gpu_checks.running import Context, tidy
from gpu_checks.sizes import settings

GOAL, AIM = 2.5, 1.9
"""Seconds of an optimizer step of 32 chains on one H100, mean over 0 to 3 recycles."""

TIMED = (0, 1)
MEAN_RECYCLES = 1.5
"""Recycles that are timed, and the mean of what a step draws: 0 to 3, each as often."""

LORTA = AdapterConfig(kind="lorta", rank=1, alpha=2.0, init="paper")
SLOW_RATE, CURVE_RATE = 1e-6, 1e-3
"""Of Adam: what is timed shall change next to nothing, what draws a curve shall learn."""

OptimizerStep = Callable[[int], Tensor]
"""One optimizer step with some recycles; gives the mean loss."""


@dataclass(frozen=True)
class Setup:
    """How a batch is computed.

    Attributes:
        micro_batch: chains at a time.
        pair_track: its type.
        compile: the model.
        graphs: replay CUDA graphs.
    """

    micro_batch: int
    pair_track: Literal["float32", "bf16"] = "bf16"
    compile: bool = False
    graphs: bool = False

    def __str__(self) -> str:
        words = ["compiled" if self.compile else "plain"] + ["CUDA graphs"] * self.graphs
        return ", ".join(words)


class AbsentError(Exception):
    """This machine or checkout has not what a setup needs."""


def optimizer_step(
    setup: Setup, context: Context, *, chains: int | None = None, rate: float = SLOW_RATE
) -> OptimizerStep:
    """An optimizer step on real crops; the only place that knows how training computes it.

    Args:
        setup: how it is computed.
        context: see there.
        chains: of the batch; None takes the paper's.
        rate: of Adam.

    Raises:
        AbsentError: the setup cannot be had here.
    """
    if context.device.type == "cpu" and setup.graphs:
        raise AbsentError("absent: needs a GPU")
    if setup.compile and context.sizes.tiny:
        raise AbsentError("tiny: compiling takes a minute of a CPU core")
    batch = batch_of(context, chains)
    config = paper_settings(setup, context, chains=len(batch.ids), rate=rate)
    together = min(4 * setup.micro_batch, len(batch.ids))  # recycling passes keep little
    module = training_module(config, Plan(setup.micro_batch, together, recompute=False))
    given = batch.to(context.device), ground_truth(batch).to(context.device)

    def step(recycles: int) -> Tensor:
        with patch.object(esmfold_peft.training.step, "recycles_at", lambda *given: recycles):
            module.training_step(given, 0)
        module.start += 1  # the next step draws another dropout
        return module.seen[1].total.mean()

    return step


def training_module(config: TrainConfig, plan: Plan) -> FoldingModule:
    """A training that is ready for its first step, without a Trainer's loop.

    Args:
        config: of a run whose folder is not used.
        plan: how many chains at a time.
    """
    model, _ = build_model(config)
    module, trainer = FoldingModule(config, model.train()), build_trainer(config, [], [])
    trainer.state.fn = TrainerFn.FITTING
    module.trainer = trainer
    # As `fit` does before its loop.
    trainer.strategy.connect(module)
    trainer.strategy.setup_environment()
    module.setup("fit")
    trainer.strategy.setup(trainer)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    module.average = ExponentialAverage(trained, config.optimizer.ema)
    module.plan, module.asked_to_stop = plan, lambda: False
    return module


def paper_step(context: Context) -> Iterator[Row]:
    """The step compiled or not, by CUDA graphs or not; its operations, and its parts plain."""
    name, size, means = step_name(context), fitting(context), dict[Setup, float]()
    for compile, graphs in ((True, True), (True, False), (False, False), (False, True)):
        setup = Setup(size, compile=compile, graphs=graphs)
        mean = yield from timed(f"{name}, {setup}", setup, context)
        if mean is not None:
            means[setup] = mean
            context.setup = min(means, key=lambda key: means[key])
        tidy(context.device)
    training = training_of(
        paper_model(Setup(size), context), batch_of(context, size).to(context.device), 0
    )
    yield from operations(name, training, min(means.values()), context)
    yield from part_rows(name, training, context)


def fitting(context: Context) -> int:
    """The most chains at a time whose plain step has enough memory.

    Args:
        context: see there.
    """
    for size in sorted(context.sizes.micro_batches, reverse=True):
        try:
            optimizer_step(Setup(size), context, chains=size)(0)
            return size
        except torch.OutOfMemoryError:
            pass
        tidy(context.device)
    return 1


def chosen_setup(context: Context) -> Setup:
    """The setup that was fastest; the plain one where that is not known."""
    return context.setup or Setup(fitting(context))


def timed(title: str, setup: Setup, context: Context) -> Generator[Row, None, float | None]:
    """Times the whole batch by recycles; returns the mean over what a step draws, in seconds.

    Args:
        title: of the rows.
        setup: how it is computed.
        context: see there.
    """
    device, medians = context.device, dict[int, float]()
    try:
        step = optimizer_step(setup, context)
        yield measured(f"{title}: first step", seconds(partial(step, max(TIMED)), device), "s")
        for recycles in TIMED:
            times = [seconds(partial(step, recycles), device) for _ in range(context.sizes.rounds)]
            medians[recycles] = statistics.median(times)
            row = f"{title}, {recycles} recycles"
            yield measured(row, medians[recycles], "s", detail=f"{setup.micro_batch} at a time")
        peak = peak_memory(partial(step, max(TIMED)), device)
    except AbsentError as error:
        yield skipped(title, str(error))
        return None
    except torch.OutOfMemoryError:
        yield skipped(title, "does not fit into the card's memory")
        return None
    mean = medians[0] + MEAN_RECYCLES * (medians[1] - medians[0])  # passes take equally long
    detail = f"aim {AIM} s; peak {peak / 2**30:.1f} GiB above the model"
    yield against_goal(f"{title}, mean over 0 to 3 recycles", mean, GOAL, "s", detail=detail)
    return mean


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


def part_rows(name: str, training: Training, context: Context) -> Iterator[Row]:
    """Forward and backward pass of each part, scaled to the whole batch.

    Args:
        name: of the rows.
        training: of one micro-batch, without recycling.
        context: see there.
    """
    steps = parts(training)
    for step in steps.values():
        step()  # warms up
    times = interleaved(steps, context.sizes.rounds, context.device)
    scale = context.sizes.batch / len(training.batch.ids)
    for part, own in times.items():
        detail = "forward and backward, plain, no recycling"
        yield measured(f"{name}: {part}", scale * statistics.median(own), "s", detail=detail)


def pair_track(context: Context) -> Iterator[Row]:
    """Loss curves of training with the pair track in float32 and in bfloat16, step by step."""
    sizes = context.sizes
    chains, steps, windows = sizes.curve
    runs = {
        track: optimizer_step(Setup(chains, track), context, chains=chains, rate=CURVE_RATE)
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
            f"pair track, {chains} x {sizes.paper_crop}, steps {first + 1} to {places[-1] + 1}:"
            " loss in bf16 / float32",
            means["bf16"] / means["float32"],
            detail=f"mean loss: {detail}",
        )


def paper_model(setup: Setup, context: Context) -> FoldingModel:
    """The model of the paper's configuration, for training.

    Args:
        setup: how it computes.
        context: see there.
    """
    model, _ = build_model(paper_settings(setup, context, chains=context.sizes.batch))
    return model.to(context.device).train()


def paper_settings(
    setup: Setup, context: Context, *, chains: int, rate: float = SLOW_RATE
) -> TrainConfig:
    """ESM-2 with LoRTA of rank 1 and the Evoformer, in bfloat16 autocast.

    Args:
        setup: how it computes.
        context: see there.
        chains: of a step.
        rate: of Adam.
    """
    paper, cpu = context.sizes.paper, context.device.type == "cpu"
    evoformer = replace(paper.evoformer, checkpoint=False)
    config = settings(
        replace(paper, evoformer=evoformer, pair_track=setup.pair_track),
        precision="bf16",
        weights=LossWeights(),
        adapter=LORTA,
        compile=setup.compile,
    )
    engine = replace(
        config.engine,
        accelerator="cpu" if cpu else "gpu",
        batch_size=chains,
        micro_batch=setup.micro_batch,
        cuda_graphs=setup.graphs,
    )
    return replace(
        config,
        engine=engine,
        optimizer=replace(config.optimizer, lr=rate),
        data=replace(config.data, crop=context.sizes.paper_crop),
    )


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


def step_name(context: Context) -> str:
    """How the rows begin."""
    return f"step, {context.sizes.batch} x {context.sizes.paper_crop}"
