"""A training as Lightning drives it, and one optimizer step of a device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from pytorch_lightning.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import Tensor

from esmfold_peft.config import TrainConfig
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.datasets.streams import RECYCLES, random_stream
from esmfold_peft.datasets.truth import GroundTruth, ground_truth
from esmfold_peft.losses.total import LossTerms, fold_loss, heads_to_compute
from esmfold_peft.metrics.lddt import LDDT, lddt, lddt_ca
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.training.ema import ExponentialAverage
from esmfold_peft.training.engines.zero import whole
from esmfold_peft.training.gradients import GradientSum, apply_gradient, gradient_norms
from esmfold_peft.training.optim import build_optimizer, learning_rate_factor
from esmfold_peft.training.passes import Chains, Passes, Prediction
from esmfold_peft.training.plan import Plan
from esmfold_peft.training.step_summary import StepSummary, summarize_step


@dataclass(frozen=True, eq=False)
class ValidationBatch:
    """Whole chains, their losses (backbone errors not clamped), and the lDDT of their Cα."""

    batch: Batch
    terms: LossTerms
    lddt: LDDT


class FoldingModule(pl.LightningModule):
    """Trains a folding model.

    The seed and the number of a sample decide every random draw. So another process can repeat a
    step, and a checkpoint needs no state of a generator.

    Args:
        config: the run's settings.
        model: the model; parameters that require gradients are trained.
        start: optimizer steps that were done before.

    Attributes:
        passes: how the model's passes are computed.
        plan: how many chains at a time.
        average: moving average of what is trained.
        asked_to_stop: whether this process shall end after the step.
        seen: chains of the latest step, and their losses.
        summary: of the latest step.
    """

    passes: Passes
    plan: Plan
    average: ExponentialAverage
    asked_to_stop: Callable[[], bool]
    seen: tuple[Batch, LossTerms]
    summary: StepSummary

    def __init__(self, config: TrainConfig, model: FoldingModel, start: int = 0) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        self.model = model
        self.start = start

    def setup(self, stage: str) -> None:
        """Prepares the passes, now that the device and the number of processes are known."""
        chains = self.config.engine.batch_size // self.trainer.world_size
        device = self.trainer.strategy.root_device
        self.passes = Passes(self.model, self.config, chains, device)

    @property
    def step(self) -> int:
        """Optimizer steps done, those before this process included."""
        return self.start + self.trainer.global_step

    def training_step(self, batch: tuple[Batch, GroundTruth], batch_index: int) -> None:
        """Makes an optimizer step."""
        terms, self.summary = optimizer_step(self, *batch)
        self.seen = batch[0], terms

    def validation_step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, batch: Batch, batch_index: int
    ) -> ValidationBatch:
        """Folds whole chains and scores them."""
        weights = self.config.loss.weights
        output = self.model(
            batch.aatype,
            batch.residue_index,
            batch.mask,
            self.config.model.max_recycles,
            heads=heads_to_compute(weights),
        )
        terms = fold_loss(
            output,
            ground_truth(batch),
            weights,
            clamp=torch.full_like(batch.resolution, torch.inf),
            resolution_range=self.config.loss.resolution,
        )
        scores = lddt_ca(output.positions, batch.positions, batch.atom_mask)
        return ValidationBatch(batch, terms, scores)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam with its schedule, which `optimizer_step` steps."""
        optimizer, schedule = build_optimizer(self.model, self.config.optimizer, start=self.start)
        self.schedule = schedule
        return {
            "optimizer": optimizer,
            "lr_scheduler": LRSchedulerConfigType(scheduler=schedule, interval="step"),
        }


def optimizer_step(
    module: FoldingModule, batch: Batch, truth: GroundTruth
) -> tuple[LossTerms, StepSummary]:
    """Trains on all chains of this device in a step, together with the other devices.

    The language model runs once, on all chains. The trunk and all behind it run on as many chains
    at a time as `module.plan` says. Their gradients are summed; then the one backward pass that an
    engine sees takes them through the language model. The host waits for the device once, for the
    summary.

    Returns:
        Losses of the chains, without graph, and the summary over all devices.
    """
    model, passes, plan, trainer = module.model, module.passes, module.plan, module.trainer
    config, step = module.config, module.step
    recycles = recycles_at(step, config.model.max_recycles, config.seed)
    first = first_sample(config, step, trainer.global_rank, len(batch.ids))

    m, weights = model.read(batch.aatype, batch.mask), model.pack()
    gradients = GradientSum(m, passes.shared_tensors(weights))
    chains = Chains(batch, truth, m.detach(), first, fixed=config.engine.compile is True)
    groups = chains.split(plan.recycling)
    predictions = passes.learn(groups, plan.micro_batch, weights, recycles, gradients)
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
    """Number, among all samples of a run, of a device's first chain in a step.

    `step` optimizer steps were done before; each device has `chains` chains in a step.
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
