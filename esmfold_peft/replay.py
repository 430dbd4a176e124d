"""`esmfold-peft train --replay FILE`: a step that was not finite, done again."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from esmfold_peft.config import ReplayConfig
from esmfold_peft.console import report
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.devices import choose_device
from esmfold_peft.errors import UserError
from esmfold_peft.training.module import FoldingModule, MicroBatch, seed_dropout
from esmfold_peft.training.nonfinite import NONFINITE, WEIGHTS, Evidence, read_evidence
from esmfold_peft.training.optim import parameter_groups
from esmfold_peft.training.run_directory import read_tensors, rebuild_model, run_config


def run(config: ReplayConfig) -> int:
    """Computes losses and gradients of a step again, and names what is not finite.

    Returns:
        1 if something is not finite again, otherwise 0.

    Raises:
        UserError: the file is no evidence of a run, or the run's base weights cannot be had.
    """
    path = config.replay.resolve()
    if len(path.parents) < 3 or path.parents[1].name != NONFINITE:
        raise UserError(f"replay: {path} is not where a run leaves it, RUN/{NONFINITE}/step_N/")
    evidence = read_evidence(path)
    device = choose_device(config.accelerator)
    folder, home = path.parent, path.parents[2]
    settings = run_config(home)
    settings = replace(settings, engine=replace(settings.engine, compile=False))
    model = rebuild_model(home, settings, read_tensors(folder / WEIGHTS), folder / WEIGHTS)
    module = FoldingModule(settings, model).to(device).train()
    report(
        f"step {evidence.step + 1} of {home}, process {evidence.rank}: then "
        + ("; ".join(evidence.faults) or "every loss was finite, and the gradient was not")
    )
    table, broken = _table(), False
    for number, batch in enumerate(evidence.batches):
        found, first, norms = _again(module, batch.to(device), evidence, number)
        _add_rows(table, found, norms)
        faults = found.terms.faults(batch.ids)
        if faults or not all(map(math.isfinite, norms.values())):
            broken = True
            where = f"; the first module to give such numbers is {first}" if first else ""
            report("; ".join(faults or ["the gradient is not finite"]) + where)
    Console().print(table)
    report("it is not finite again" if broken else "all is finite this time")
    return 1 if broken else 0


def _again(
    module: FoldingModule, batch: Batch, evidence: Evidence, number: int
) -> tuple[MicroBatch, str, dict[str, float]]:
    """A micro-batch as it was: its losses, the first module at fault, norms of the gradient."""
    seed_dropout(module.config.seed, evidence.step, number, evidence.rank)
    module.zero_grad()
    with _watched(module.model) as faulty:
        loss, found = module.learn(batch, evidence.step)
    loss.backward()
    norms = {
        name: float(nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]))
        for name, group in parameter_groups(module.model).items()
    }
    return found, faulty[0] if faulty else "", norms


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[str]]:
    """Names the modules whose output is not finite, in the order in which they end."""
    faulty: list[str] = []

    def watch(name: str, output: Any) -> None:
        if not all(bool(t.isfinite().all()) for t in _tensors(output)):
            faulty.append(name)

    hooks = [
        part.register_forward_hook(lambda _, __, output, name=name: watch(name, output))
        for name, part in model.named_modules()
        if name
    ]
    try:
        yield faulty
    finally:
        for hook in hooks:
            hook.remove()


def _tensors(value: Any) -> Iterator[Tensor]:
    """The numbers with a fraction in what a module gives."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


def _table() -> Table:
    table = Table(title="losses, and norms of the micro-batch's gradient")
    for column in ("chain", "residues", "loss", "terms", "adapter", "trunk", "head"):
        table.add_column(column, justify="left" if column in ("chain", "terms") else "right")
    return table


def _add_rows(table: Table, found: MicroBatch, norms: dict[str, float]) -> None:
    terms = {name: term.tolist() for name, term in found.terms.terms.items()}
    for row, chain in enumerate(found.batch.ids):
        shown = ", ".join(f"{name} {values[row]:.3g}" for name, values in terms.items())
        gradient = [f"{norm:.3g}" for norm in norms.values()] if not row else [""] * len(norms)
        residues, loss = int(found.batch.mask[row].sum()), float(found.terms.total[row])
        table.add_row(chain, str(residues), f"{loss:.4g}", shown, *gradient)
