"""One optimizer step of a device, from its chains to the moving average."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor

from esmfold_peft.config import TrainConfig
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.datasets.streams import RECYCLES, random_stream
from esmfold_peft.datasets.truth import GroundTruth
from esmfold_peft.losses.total import LossTerms
from esmfold_peft.metrics.lddt import lddt
from esmfold_peft.training.engines.zero import whole
from esmfold_peft.training.gradients import GradientSum, apply_gradient, gradient_norms
from esmfold_peft.training.optim import learning_rate_factor
from esmfold_peft.training.passes import Chains, Prediction
from esmfold_peft.training.step_summary import StepSummary, summarize_step

if TYPE_CHECKING:
    from esmfold_peft.training.module import FoldingModule


def optimizer_step(
    module: "FoldingModule", batch: Batch, truth: GroundTruth
) -> tuple[LossTerms, StepSummary]:
    """Trains on the chains of this device, together with the other devices.

    The language model runs once, on all chains. The trunk and all behind it run on as many chains
    at a time as `module.plan` says; their gradients are summed, and the one backward pass that an
    engine sees hands them over and goes on through the language model. The host waits for the
    device once, for the summary.

    Args:
        module: the training.
        batch: all chains of the device in this step.
        truth: their true structures.

    Returns:
        Losses of the chains, without graph, and what the step amounted to over all devices.
    """
    model, passes, plan, trainer = module.model, module.passes, module.plan, module.trainer
    config, step = module.config, module.step
    recycles = recycles_at(step, config.model.max_recycles, config.seed)
    first = first_sample(config, step, trainer.global_rank, len(batch.ids))

    m, weights = model.read(batch.aatype, batch.mask), model.pack()
    gradients = GradientSum(m, passes.shared_tensors(weights))
    chains = Chains(batch, truth, m.detach(), first, fixed=config.engine.compile is True)
    predictions: list[Prediction] = []
    for group in chains.split(plan.recycling):
        recycled = passes.recycle(group, weights, recycles)
        for micro_batch in group.split(plan.micro_batch):
            previous = micro_batch.rows_of(group, recycled)
            found = passes.differentiate(micro_batch, previous, weights, recycles, gradients)
            predictions.append(found)
        recycled = previous = None  # the next group needs the memory
    with whole(trainer, gradients.parameters):  # which ZeRO stage 3 spreads
        module.manual_backward(gradients.as_loss())

    norms = gradient_norms(trainer)
    apply_gradient(trainer, module.optimizers(), norms["total"], config.optimizer.clip_norm)
    module.schedule.step()
    terms, scores = _joined([p.terms for p in predictions]), _scores(predictions, truth)
    rate = config.optimizer.lr * learning_rate_factor(step, config.optimizer)
    stop = module.asked_to_stop()
    summary = summarize_step(trainer, step + 1, terms, scores, norms, rate, stop=stop)
    if not summary.skipped:
        module.average.update()
    return terms, summary


def recycles_at(step: int, most: int, seed: int) -> int:
    """Recycling passes of an optimizer step: uniform from 0 to `most`, the same everywhere."""
    return int(random_stream(seed, RECYCLES, step).integers(most + 1))


def first_sample(config: TrainConfig, step: int, rank: int, chains: int) -> int:
    """The number, among all samples of a run, of a device's first chain in a step.

    Args:
        config: of the run.
        step: optimizer steps done before.
        rank: the device's process.
        chains: of the device in the step.
    """
    return step * config.engine.batch_size + rank * chains


def _joined(terms: Sequence[LossTerms]) -> LossTerms:
    """The losses of all chains."""
    return LossTerms(
        torch.cat([part.total for part in terms]),
        {name: torch.cat([part.terms[name] for part in terms]) for name in terms[0].terms},
    )


def _scores(found: Sequence[Prediction], truth: GroundTruth) -> Float[Tensor, "b"]:
    """lDDT-Cα of all chains; NaN for a chain without a resolved pair."""
    n = truth.ca.shape[1]
    ca = torch.cat([F.pad(part.ca, (0, 0, 0, n - part.ca.shape[1])) for part in found])
    return lddt(ca.double(), truth.ca.double(), truth.ca_mask).per_chain
