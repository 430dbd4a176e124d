"""A toy trained by every engine, for `test_engine_state.py`.

Leaves a file of results for each engine in the folder that is the argument. The processes that
train are forked from this one, which has imported what takes seconds.
"""

import gc
import json
import multiprocessing
import os
import socket
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import install_import_hook
from torch import Tensor, nn, optim

install_import_hook("esmfold_peft", "beartype.beartype")

from esmfold_peft.config import EngineConfig
from esmfold_peft.training.ema import ExponentialAverage
from esmfold_peft.training.engines.engine_state import read_adam, read_parameters, write_adam
from esmfold_peft.training.engines.trainer import _deepspeed, _Untouched
from esmfold_peft.training.engines.zero import whole
from esmfold_peft.training.gradients import GradientSum, apply_gradient, gradient_norms

ROOT, FOLDER = Path(__file__).parents[3], Path(sys.argv[1])
WORLD, RANK = 1, 0  # those of a forked process
# By the number of processes: engines, each with the one whose training it takes up.
ENGINES = {
    1: {"zero2": "single_1", "zero3": "zero2_1"},
    2: {
        "ddp": "zero3_1",
        "zero0": "single_1",
        "zero1": "ddp_2",
        "zero2": "zero3_2",
        "zero3": "zero2_1",
        "zero2_offload": "zero1_2",
        "zero3_offload": "zero0_2",
    },
}
MICRO_BATCHES = 4  # of an optimizer step, in all processes together
PERSISTENT = 100  # numbers: the trunk's weight is larger, all else smaller
CLIP, STEPS, SAVED, BROKEN = 0.1, 6, 3, 3
UNSEEN = 10**6  # a micro-batch
DECAY = 0.4  # of the average


class Scale(nn.Module):
    """Multiplies by a vector that two of them share."""

    def __init__(self, factor: nn.Parameter) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Toy(pl.LightningModule):
    """A frozen layer, then adapter, trunk and head.

    `done` optimizer steps were made in another run; the loss of step `broken` is NaN in a
    micro-batch of the last process.
    """

    def __init__(self, done: int = 0, eps: float = 1e-3, broken: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.done, self.eps, self.broken = done, eps, broken
        self.base = nn.Linear(8, 33).requires_grad_(False)
        self.first = Scale(nn.Parameter(1 + torch.rand(33)))
        self.trunk = nn.Linear(33, 7)
        self.bias = nn.Linear(7, 7)
        self.second = Scale(self.first.factor)
        self.head = nn.Linear(7, 3)
        self.head_bias = nn.Linear(33, 1)
        self.register_buffer("drawn", torch.arange(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.second_half(self.first(self.base(x).tanh()))

    def second_half(self, x: Tensor) -> Tensor:
        x = self.second(x).tanh()
        gate = self.head_bias(x)
        return gate * self.head(self.bias(self.trunk(x).tanh()))

    def training_step(self, batch: list[Tensor], index: int) -> None:
        """A step like that of the package: micro-batches, one backward pass, clip, Adam."""
        x = self.first(self.base(torch.stack([part[:, :8] for part in batch])).tanh())
        leaf = x.detach().requires_grad_()
        later = [p for p in self.parameters() if p.requires_grad]
        sums = GradientSum(x, later)
        for place, part in enumerate(batch):
            loss = self.loss(leaf[place], part[:, 8:]) / len(batch)
            if place == 0 and self.global_step == self.broken and RANK == WORLD - 1:
                loss = loss * torch.nan
            of_leaf, *gradients = torch.autograd.grad(loss, [leaf, *later], allow_unused=True)
            sums.add(slice(place, place + 1), of_leaf[place : place + 1], gradients)
        with whole(self.trainer, sums.parameters):
            self.manual_backward(sums.as_loss())
        norms = gradient_norms(self.trainer)
        self.probe.measured(self.trainer, norms)
        apply_gradient(self.trainer, self.optimizers(), norms["total"], CLIP)
        self.lr_schedulers().step()

    def loss(self, x: Tensor, wanted: Tensor) -> Tensor:
        return 10 * (self.second_half(x) - wanted).square().mean()

    def validation_step(self, batch: Tensor, index: int) -> None:
        self.predicted = self(batch[:, :8])

    def train_dataloader(self) -> Any:
        first, all_steps = self.done * MICRO_BATCHES, STEPS * MICRO_BATCHES
        own = [samples(first + i) for i in range(RANK, all_steps, WORLD)]
        share = MICRO_BATCHES // WORLD
        steps = [own[i : i + share] for i in range(0, len(own), share)]
        return torch.utils.data.DataLoader(steps, batch_size=None)

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader([samples(UNSEEN)], batch_size=None)

    def configure_optimizers(self) -> Any:
        # Where eps is large, Adam's first step is the gradient, times lr / eps.
        lr = 1e-2 if self.eps < 1 else self.eps
        faster = 2 if self.eps < 1 else 1
        groups = [
            {"params": [self.first.factor], "name": "adapter", "lr": lr},
            {"params": [*self.bias.parameters()], "name": "adapter", "lr": faster * lr},
            {"params": [self.trunk.weight, self.trunk.bias], "name": "trunk", "lr": lr},
            {"params": [*self.head.parameters(), *self.head_bias.parameters()], "name": "head"},
        ]
        optimizer = optim.Adam(groups, lr=lr, eps=self.eps, fused=True)
        schedule = optim.lr_scheduler.LambdaLR(optimizer, lambda i: 0.9 ** (i + self.done))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def samples(index: int) -> Tensor:
    """A micro-batch."""
    return torch.randn(5, 11, generator=torch.Generator().manual_seed(index))


def trained(toy: pl.LightningModule) -> dict[str, nn.Parameter]:
    return {name: p for name, p in toy.named_parameters() if p.requires_grad}


class Probe(pl.Callback):
    """Writes down what the functions under test say, and uses them in all ways at once."""

    def __init__(
        self, start: dict | None = None, *, look: bool, discard: int | None = None
    ) -> None:
        self.start, self.look, self.discard = start, look, discard
        self.seen: dict[str, Any] = {"norms": [], "path": [], "rates": []}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        parameters = trained(pl_module)
        self.seen["untrained"] = read_adam(trainer, parameters)
        self.average = ExponentialAverage(parameters, DECAY)
        if self.start is not None:
            write_adam(trainer, parameters, self.start["adam"])
            self.average.write(self.start["average"], self.start["updates"])
            self.seen["start"] = state(trainer) | self.averages(trainer)
        self.seen["path"].append(read_parameters(trainer, parameters))
        self.seen["persistent"] = [n for n, p in parameters.items() if getattr(p, "ds_persist", 0)]
        self.seen["imported"] = "deepspeed" in sys.modules

    def measured(self, trainer: pl.Trainer, norms: dict[str, Tensor]) -> None:
        """Between gradient and step."""
        broken = trainer.lightning_module.broken
        if self.look or broken is not None:
            self.seen["norms"].append({name: float(norm) for name, norm in norms.items()})
        if trainer.global_step in (self.discard, broken):
            self.seen["kept"] = state(trainer)
        if trainer.global_step == self.discard:
            norms["total"] = norms["total"] * torch.nan

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        self.seen["rates"].append(trainer.lr_scheduler_configs[0].scheduler.get_last_lr()[0])
        self.average.update()
        if "kept" in self.seen and "after" not in self.seen:
            self.seen["after"] = state(trainer)
        if self.look:
            self.seen["path"].append(read_parameters(trainer, trained(trainer.lightning_module)))
        if self.look and trainer.global_step == SAVED:
            self.seen["saved"] = state(trainer) | self.averages(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.swap = self.average.swapped(trainer)
        self.swap.__enter__()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen["inside"] = pl_module.predicted
        self.swap.__exit__(None, None, None)
        try:
            with self.average.swapped(trainer):
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            trainer.strategy.validation_step(samples(UNSEEN), 0)
        self.seen["outside"] = pl_module.predicted

    def averages(self, trainer: pl.Trainer) -> dict[str, Any]:
        return {"average": self.average.read(trainer), "updates": self.average.updates}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen["end"] = state(trainer) | self.averages(trainer)
        self.seen["steps"] = trainer.global_step


def state(trainer: pl.Trainer) -> dict[str, Any]:
    toy = trainer.lightning_module
    everything = dict(toy.named_parameters()) | dict(toy.named_buffers())
    return {
        "parameters": read_parameters(trainer, everything),
        "adam": read_adam(trainer, trained(toy)),
    }


def strategy(engine: str) -> Any:
    """The shipped DeepSpeed file of this name, with a low threshold of stage 3."""
    if engine == "single":
        return "auto"
    if engine == "ddp":
        return pl.strategies.DDPStrategy(process_group_backend="gloo")
    settings = {"zero_optimization": {"stage": 0}}
    if engine != "zero0":
        settings = json.loads((ROOT / "configs" / "deepspeed" / f"{engine}.json").read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = PERSISTENT
    path = FOLDER / f"{engine}_{RANK}.json"
    path.write_text(json.dumps(settings))
    engine = EngineConfig(accelerator="cpu", deepspeed=path)
    return _deepspeed(engine, chains=5, clip_norm=CLIP)


def fit(engine: str, toy: Toy, probe: Probe, steps: int = STEPS) -> dict[str, Any]:
    """What a probe has seen in a training."""
    if probe.start is not None:
        fill(toy, probe.start["parameters"])
    trainer = pl.Trainer(
        accelerator="cpu", devices=WORLD, strategy=strategy(engine), max_steps=steps,
        plugins=[_Untouched("32-true")] if "zero" in engine else None,
        logger=False, val_check_interval=SAVED, check_val_every_n_epoch=None,
        limit_val_batches=1 if probe.look else 0, num_sanity_val_steps=0,
        use_distributed_sampler=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[probe],
    )  # fmt: skip
    toy.probe = probe
    trainer.fit(toy)
    return probe.seen


def loaded(path: Path) -> dict[str, Any]:
    """The results of another engine, for all processes."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    return torch.load(path, weights_only=False)


def runs(engine: str) -> Iterator[tuple[str, dict]]:
    yield "plain", fit(engine, Toy(), Probe(look=False))
    yield "probed", fit(engine, Toy(), Probe(look=True))
    yield "broken", fit(engine, Toy(broken=BROKEN), Probe(look=False))
    yield "discarded", fit(engine, Toy(), Probe(look=False, discard=BROKEN))
    yield "clipped", fit(engine, Toy(eps=1e3), Probe(look=True), steps=1)


def resumed_runs(engine: str, own: dict, other: dict) -> Iterator[tuple[str, dict]]:
    own, other = own["probed"]["saved"], other["probed"]["saved"]
    left, late = STEPS - SAVED, STEPS - BROKEN - 1
    yield "resumed", fit(engine, Toy(done=SAVED), Probe(own, look=False), steps=left)
    yield "moved", fit(engine, Toy(done=SAVED), Probe(other, look=False), steps=left)
    yield "skipped", fit(engine, Toy(done=BROKEN + 1), Probe(own, look=False), steps=late)


def expected_predictions(seen: dict[str, Any]) -> list[Tensor]:
    """A forward pass with the average and one with the parameters, both as they were read."""
    found = []
    for tensors in (seen["end"]["average"], seen["end"]["parameters"]):
        toy = Toy()
        fill(toy, tensors)
        with torch.no_grad():
            found.append(toy(samples(UNSEEN)[:, :8]))
    return found


def fill(toy: Toy, tensors: dict[str, Tensor]) -> None:
    """Sets parameters and buffers; two layers have the same factor."""
    toy.load_state_dict(toy.state_dict() | tensors | {"second.factor": tensors["first.factor"]})


def begin(engine: str) -> None:
    results = dict(runs(engine))
    if RANK == 0:
        results["expected"] = expected_predictions(results["probed"])
        torch.save(results, FOLDER / f"{engine}_{WORLD}.pt")


def resume(engine: str, other: str) -> None:
    path = FOLDER / f"{engine}_{WORLD}.pt"
    results = loaded(path)
    results |= dict(resumed_runs(engine, results, loaded(FOLDER / f"{other}.pt")))
    if RANK == 0:
        torch.save(results, path)


def train(world: int, rank: int, port: int, fresh: list[str], resumed: dict[str, str]) -> None:
    """Every engine from the start, then from what another has left."""
    global WORLD, RANK
    WORLD, RANK = world, rank
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    everyones = {"GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in (own | everyones).items()}
    for engine in fresh:
        begin(engine)
    for engine, other in resumed.items():
        resume(engine, other)


def fork(world: int, fresh: Iterable[str], resumed: dict[str, str]) -> None:
    """Trains in as many processes as `world`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=train, args=(world, rank, port, [*fresh], resumed), daemon=True)
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0


def main() -> None:
    warnings.simplefilter("ignore")
    fork(1, ["single"], {})
    import deepspeed  # noqa: F401

    gc.freeze()  # DeepSpeed collects garbage at every start
    for world, engines in ENGINES.items():
        fork(world, engines, engines)
    fork(1, [], {"single": "zero3_2"})


if __name__ == "__main__":
    main()
