"""The training step and the validation step."""

import math
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import Tensor

from esmfold_peft.config import TrainConfig
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.datasets.streams import DROPOUT, RECYCLES, random_seed, random_stream
from esmfold_peft.losses.total import LossTerms, fold_loss, heads_to_compute
from esmfold_peft.metrics.lddt import LDDT, lddt_ca
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.training.accumulation import accumulation
from esmfold_peft.training.gradients import discard_step, gradient_norms, step_is_due
from esmfold_peft.training.optim import build_optimizer

_CLAMP = 10.0  # Å (AF2 Suppl. Alg. 28)


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """What a process has seen at a time in the present optimizer step.

    Attributes:
        batch: the chains.
        terms: their losses, without graph.
        scores: their lDDT-Cα; NaN without a resolved pair.
    """

    batch: Batch
    terms: LossTerms
    scores: Tensor


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

    All that is drawn at random follows from the seed and the step, so that a step can be done again
    in another process, and no generator has a state to keep.

    Args:
        config: the run's settings.
        model: the model; what requires gradients is trained.
        start: optimizer steps that were done before.

    Attributes:
        step: optimizer steps done, those before included.
        micro_batches: what this process has seen since the last step.
        norms: of the gradient of the latest step before clipping: adapter, trunk, head and total.
        latest: newest losses and scores by name, for whoever shows them.
    """

    def __init__(self, config: TrainConfig, model: FoldingModel, start: int = 0) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.start = start
        self.micro_batches: list[MicroBatch] = []
        self.norms: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        self._accumulation = accumulation(config.engine)

    @property
    def step(self) -> int:
        """Optimizer steps done, those before this process included."""
        return self.start + self.trainer.global_step

    @property
    def step_is_whole(self) -> bool:
        """Whether all micro-batches of an optimizer step have been seen."""
        return len(self.micro_batches) == self._accumulation

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The mean loss of a micro-batch; its gradient is NaN where the loss is not finite."""
        number = len(self.micro_batches)
        seed_dropout(self.config.seed, self.step, number, self.global_rank)
        loss, found = self.learn(batch, self.step)
        self.micro_batches.append(found)
        return loss

    def learn(self, batch: Batch, step: int) -> tuple[Tensor, MicroBatch]:
        """The mean loss of training crops, with its graph, and what is known of each.

        Args:
            batch: the crops.
            step: optimizer steps done, which say how often the crops are recycled.
        """
        weights = self.config.loss.weights
        output = self.model(
            batch.aatype,
            batch.residue_index,
            batch.mask,
            recycles_at(step, self.config.model.max_recycles, self.config.seed),
            heads=heads_to_compute(weights),
        )
        terms = fold_loss(
            output,
            batch,
            weights,
            clamp=torch.where(batch.clamped, _CLAMP, torch.inf),
            resolution_range=self.config.loss.resolution,
        )
        scores = lddt_ca(output.positions, batch.positions, batch.atom_mask).per_chain
        loss = terms.total.mean()
        # A loss that is not finite may have a finite gradient, which must not be learnt from: it
        # becomes NaN, in every process that the gradient is shared with.
        poison = torch.where(loss.isfinite(), 0.0, torch.nan)
        known = LossTerms(terms.total.detach(), {n: t.detach() for n, t in terms.terms.items()})
        return loss + poison * output.positions.sum(), MicroBatch(batch, known, scores)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Measures the gradient, and leaves out the step if it is not finite."""
        if not step_is_due(self.trainer):
            return
        self.norms = gradient_norms(self.trainer)
        if not math.isfinite(self.norms["total"]):
            discard_step(self.trainer)

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
        unclamped = torch.full_like(batch.resolution, torch.inf)
        terms = fold_loss(
            output,
            batch,
            weights,
            clamp=unclamped,
            resolution_range=self.config.loss.resolution,
        )
        scores = lddt_ca(output.positions, batch.positions, batch.atom_mask)
        return ValidationBatch(batch, terms, scores)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam with its schedule stepped once per optimizer step."""
        optimizer, schedule = build_optimizer(self.model, self.config.optimizer, start=self.start)
        return {
            "optimizer": optimizer,
            "lr_scheduler": LRSchedulerConfigType(scheduler=schedule, interval="step"),
        }


def seed_dropout(seed: int, step: int, number: int, rank: int) -> None:
    """Seeds PyTorch's generators for one micro-batch.

    Args:
        seed: of the run.
        step: optimizer steps done.
        number: of the micro-batch in its step and process.
        rank: the process, which draws for itself.
    """
    torch.manual_seed(random_seed(seed, DROPOUT, step, number, rank))


def recycles_at(step: int, most: int, seed: int) -> int:
    """Recycling passes of an optimizer step: uniform from 0 to `most`, the same everywhere."""
    return int(random_stream(seed, RECYCLES, step).integers(most + 1))
