"""`esmfold-peft train --replay FILE`: computes a step that was not finite again."""

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
from esmfold_peft.datasets.truth import ground_truth
from esmfold_peft.devices import choose_device
from esmfold_peft.errors import UserError
from esmfold_peft.losses.total import LossTerms
from esmfold_peft.model.folding import FoldingModel, parameter_groups
from esmfold_peft.runs.ready import rebuild_model
from esmfold_peft.runs.run_directory import read_tensors, run_config
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
        raise UserError(
            f"replay: {config.replay} is not in the folder of a run; give a file"
            f" RUN/{NONFINITE}/step_N/rank_N.safetensors"
        )
    evidence = read_evidence(path)
    device = choose_device(config.accelerator)
    weights, home = path.parent / WEIGHTS, path.parents[2]
    settings = run_config(home)
    settings = replace(settings, engine=replace(settings.engine, compile=False, cuda_graphs=False))
    model = rebuild_model(home, settings, read_tensors(weights), weights)
    model = model.to(device).train()
    report(
        f"step {evidence.step + 1} of {home}, process {evidence.rank}, in training:"
        f" {'; '.join(evidence.faults) or 'every loss was finite, the gradient was not'}"
    )
    table = Table("chain", title="losses, and norms of each chain's part of the gradient")
    for column in ("residues", "loss", "terms", "adapter", "trunk", "head"):
        table.add_column(column, justify="left" if column == "terms" else "right")
    broken = False
    for chain in _chains(evidence, settings, model):
        terms, first, norms = _again(model, settings, chain, evidence)
        (name,), (residues,) = chain.batch.ids, chain.batch.lengths
        shown = ", ".join(f"{name} {float(term):.3g}" for name, term in terms.terms.items())
        gradient = [f"{norm:.3g}" for norm in norms.values()]
        table.add_row(name, str(residues), f"{float(terms.total):.4g}", shown, *gradient)
        faults = terms.faults(chain.batch.ids)
        if faults or not all(map(math.isfinite, norms.values())):
            broken = True
            where = f"; the first module with such numbers is {first}" if first else ""
            report("; ".join(faults or [f"{name}: its gradient is not finite"]) + where)
    Console().print(table)
    report("the step is not finite again" if broken else "all is finite this time")
    return 1 if broken else 0


def _chains(evidence: Evidence, config: TrainConfig, model: FoldingModel) -> Iterator[Chains]:
    """The chains of the step, one at a time, without sequence tracks."""
    device = next(model.parameters()).device
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
        if not all(bool(t.detach().isfinite().all()) for t in _floats(output)):
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


def _floats(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a module gives."""
    if isinstance(value, Tensor) and value.is_floating_point():
        yield value
    if is_dataclass(value):
        value = [getattr(value, field.name) for field in fields(value)]
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _floats(item)
