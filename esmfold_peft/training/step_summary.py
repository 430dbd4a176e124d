"""What an optimizer step amounted to, over all processes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pytorch_lightning as pl
import torch

from esmfold_peft.training.module import FoldingModule
from esmfold_peft.training.optim import learning_rate_factor


@dataclass(frozen=True)
class StepSummary:
    """One optimizer step; the same in every process.

    Attributes:
        step: its number, from 1.
        metrics: means over its chains (train/...), norms of its gradient before clipping
            (gradient/...), each group's share of the squared norm (gradient_share/...) and its
            learning rate.
        stop: whether a process was asked to stop.
    """

    step: int
    metrics: dict[str, float]
    stop: bool

    @property
    def skipped(self) -> bool:
        """Whether nothing was learnt, because the gradient was not finite."""
        return not math.isfinite(self.metrics["gradient/total"])


def summarize_step(trainer: pl.Trainer, module: FoldingModule, *, stop: bool) -> StepSummary:
    """Adds up the micro-batches of a step: one message between the processes.

    Args:
        trainer: whose step it is.
        module: with all micro-batches of the step.
        stop: whether this process was asked to stop.
    """
    micro_batches = module.micro_batches
    names = ["loss", *micro_batches[0].terms.terms]
    means = torch.stack(
        [
            torch.stack([m.terms.total.mean(), *(t.mean() for t in m.terms.terms.values())])
            for m in micro_batches
        ]
    ).mean(0)
    # A crop without a resolved pair has no score: mean over those that have one.
    scores = torch.cat([m.scores for m in micro_batches])
    found = scores.isfinite()
    counts = torch.stack([scores.nansum(), found.sum(), found.new_full((), stop)]).to(means.dtype)
    total = trainer.strategy.reduce(torch.cat([means, counts]), reduce_op="sum").tolist()
    *losses, score, scored, stops = total
    metrics = {f"train/{n}": v / trainer.world_size for n, v in zip(names, losses, strict=True)}
    metrics["train/lddt_ca"] = score / scored if scored else math.nan
    metrics |= {f"gradient/{name}": norm for name, norm in module.norms.items()}
    metrics |= _gradient_shares(module.norms)
    optimizer = module.config.optimizer
    metrics["learning_rate"] = optimizer.lr * learning_rate_factor(module.step - 1, optimizer)
    return StepSummary(module.step, metrics, stop=stops > 0)


def _gradient_shares(norms: Mapping[str, float]) -> dict[str, float]:
    """Each group's share of the squared norm, which clipping by the global norm is about."""
    total = norms["total"]
    return {
        f"gradient_share/{name}": (norm / total) ** 2 if total else math.nan
        for name, norm in norms.items()
        if name != "total"
    }
