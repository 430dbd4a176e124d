"""The results of an optimizer step, over all processes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from torch import Tensor

from esmfold_peft.losses.total import LossTerms


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


def summarize_step(
    trainer: pl.Trainer,
    step: int,
    terms: LossTerms,
    scores: Float[Tensor, "b"],
    norms: Mapping[str, Tensor],
    rate: float,
    *,
    stop: bool,
) -> StepSummary:
    """Gathers the results of a step: one message between processes, one wait for the device.

    `step` counts from 1. `terms` and `scores` (lDDT-Cα, NaN without a resolved pair) are those of
    this process's chains, and `stop` is whether this process was asked to stop; `norms` are those
    of the gradient of all processes, and `rate` is the learning rate.
    """
    names = ["loss", *terms.terms]
    means = torch.stack((terms.total, *terms.terms.values())).double().mean(1)
    # A crop without a resolved pair has no score: mean over those that have one.
    found = scores.isfinite()
    counts = torch.stack((scores.nansum(), found.sum(), found.new_full((), stop)))
    shared = trainer.strategy.reduce(torch.cat((means, counts.double())), reduce_op="sum")
    assert isinstance(shared, Tensor)
    values = torch.cat((shared, torch.stack((*norms.values(),)))).tolist()
    losses, (score, scored, stops) = values[: len(names)], values[len(names) : len(names) + 3]
    gradient = dict(zip(norms, values[len(names) + 3 :], strict=True))
    metrics = {f"train/{n}": v / trainer.world_size for n, v in zip(names, losses, strict=True)}
    metrics["train/lddt_ca"] = score / scored if scored else math.nan
    metrics |= {f"gradient/{name}": norm for name, norm in gradient.items()}
    # Clipping by the global norm is about the groups' shares of the squared norm.
    total = gradient.pop("total")
    metrics |= {
        f"gradient_share/{name}": (norm / total) ** 2 if total else math.nan
        for name, norm in gradient.items()
    }
    metrics["learning_rate"] = rate
    return StepSummary(step, metrics, stop=stops > 0)
