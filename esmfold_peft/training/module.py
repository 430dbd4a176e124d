"""The folding model in training, as Lightning drives it."""

from collections.abc import Callable
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig

from esmfold_peft.config import TrainConfig
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.datasets.truth import GroundTruth, ground_truth
from esmfold_peft.losses.total import LossTerms, fold_loss, heads_to_compute
from esmfold_peft.metrics.lddt import LDDT, lddt_ca
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.training.ema import ExponentialAverage
from esmfold_peft.training.optim import build_optimizer
from esmfold_peft.training.passes import Passes
from esmfold_peft.training.plan import Plan
from esmfold_peft.training.step import optimizer_step
from esmfold_peft.training.step_summary import StepSummary


@dataclass(frozen=True, eq=False)
class ValidationBatch:
    """Whole chains, scored.

    Attributes:
        batch: the chains.
        terms: their losses, backbone errors not clamped.
        lddt: of their Cα.
    """

    batch: Batch
    terms: LossTerms
    lddt: LDDT


class FoldingModule(pl.LightningModule):
    """Trains a folding model.

    All random draws follow from the seed and the number of a sample. So another process can do a
    step again, and no generator has a state to keep.

    Args:
        config: the run's settings.
        model: the model; what requires gradients is trained.
        start: optimizer steps that were done before.

    Attributes:
        step: optimizer steps done, those before included.
        passes: how the model's passes are computed.
        plan: how many chains at a time.
        average: moving average of what is trained.
        asked_to_stop: whether this process shall end after the step.
        seen: chains of the latest step, and their losses.
        summary: of the latest step.
        latest: newest losses and scores by name, for whoever shows them.
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
        self.latest: dict[str, float] = {}

    def setup(self, stage: str) -> None:
        """Learns how many processes share a step, and on which device this one is."""
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
