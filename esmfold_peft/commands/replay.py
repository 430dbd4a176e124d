"""`esmfold-peft train --replay FILE`: a step that was not finite, done again."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from esmfold_peft.config import ReplayConfig, TrainConfig
from esmfold_peft.console import report
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.datasets.truth import ground_truth
from esmfold_peft.devices import choose_device
from esmfold_peft.errors import UserError
from esmfold_peft.losses.total import LossTerms
from esmfold_peft.model.folding import FoldingModel, parameter_groups
from esmfold_peft.runs.run_directory import read_tensors, rebuild_model, run_config
from esmfold_peft.training.nonfinite import NONFINITE, WEIGHTS, Evidence, read_evidence
from esmfold_peft.training.passes import Chains, Passes
from esmfold_peft.training.step import first_sample, recycles_at


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
    settings = replace(settings, engine=replace(settings.engine, compile=False, cuda_graphs=False))
    model = rebuild_model(home, settings, read_tensors(folder / WEIGHTS), folder / WEIGHTS)
    model = model.to(device).train()
    report(
        f"step {evidence.step + 1} of {home}, process {evidence.rank}: then "
        + ("; ".join(evidence.faults) or "every loss was finite, and the gradient was not")
    )
    table, broken = _table(), False
    for chain in _chains(evidence, settings, device):
        terms, first, norms = _again(model, settings, chain, evidence)
        _add_row(table, chain.batch, terms, norms)
        faults = terms.faults(chain.batch.ids)
        if faults or not all(map(math.isfinite, norms.values())):
            broken = True
            where = f"; the first module to give such numbers is {first}" if first else ""
            fault = faults or [f"{chain.batch.ids[0]}: its gradient is not finite"]
            report("; ".join(fault) + where)
    Console().print(table)
    report("it is not finite again" if broken else "all is finite this time")
    return 1 if broken else 0


def _chains(evidence: Evidence, config: TrainConfig, device: torch.device) -> Iterator[Chains]:
    """The chains of the step, one at a time, without sequence tracks."""
    truth = ground_truth(evidence.batch)
    batch, truth = evidence.batch.to(device), truth.to(device)
    first = first_sample(config, evidence.step, evidence.rank, len(batch.ids))
    nothing = torch.empty(*batch.mask.shape, 0, device=device)
    yield from Chains(batch, truth, nothing, first).split(1)


def _again(
    model: FoldingModel, config: TrainConfig, chain: Chains, evidence: Evidence
) -> tuple[LossTerms, str, dict[str, float]]:
    """A chain as it was: its losses, the first module at fault, norms of its gradient."""
    passes = Passes(model, config, len(evidence.batch.ids), chain.batch.mask.device)
    recycles = recycles_at(evidence.step, config.model.max_recycles, config.seed)
    model.zero_grad()
    with _watched(model) as faulty:
        m, weights = model.read(chain.batch.aatype, chain.batch.mask), model.pack()
        chain = replace(chain, m=m)
        recycled = passes.recycle(chain, weights, recycles)
        loss, prediction = passes.loss(chain, recycled, weights, recycles)
    loss.backward()
    norms = {
        name: float(nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]))
        for name, group in parameter_groups(model).items()
    }
    return prediction.terms, faulty[0] if faulty else "", norms


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
    table = Table(title="losses, and norms of each chain's part of the gradient")
    for column in ("chain", "residues", "loss", "terms", "adapter", "trunk", "head"):
        table.add_column(column, justify="left" if column in ("chain", "terms") else "right")
    return table


def _add_row(table: Table, chain: Batch, losses: LossTerms, norms: dict[str, float]) -> None:
    shown = ", ".join(f"{name} {float(term):.3g}" for name, term in losses.terms.items())
    gradient = [f"{norm:.3g}" for norm in norms.values()]
    (name,), (residues,) = chain.ids, chain.lengths
    table.add_row(name, str(residues), f"{float(losses.total):.4g}", shown, *gradient)
