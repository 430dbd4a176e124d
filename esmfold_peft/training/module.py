"""The training step and the validation step."""

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import Tensor

from esmfold_peft.config import TrainConfig
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.errors import UserError
from esmfold_peft.losses.total import fold_loss, heads_to_compute
from esmfold_peft.metrics.lddt import lddt_ca
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.training.accumulation import accumulation
from esmfold_peft.training.optim import build_optimizer

_CLAMP = 10.0  # Å (AF2 Suppl. Alg. 28)


class NonFiniteLossError(UserError):
    """The loss of a chain is NaN or infinite; names the chain and the terms."""


class FoldingModule(pl.LightningModule):
    """Trains a folding model.

    Args:
        config: the run's settings.
        model: the model; what requires gradients is trained.
        base_hash: SHA-256 of the language model's base weights.
    """

    def __init__(self, config: TrainConfig, model: FoldingModel, base_hash: str) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.base_hash = base_hash
        self._scores: dict[str, float] = {}
        self._accumulation = accumulation(config.engine)
        self._micro_batches: list[dict[str, Tensor]] = []
        self._train_scores: list[Tensor] = []

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The mean loss of a micro-batch; all processes draw the same number of passes.

        Raises:
            NonFiniteLossError: that of a chain is not finite, in any process.
        """
        recycles = recycles_at(self.global_step, self.config.model.max_recycles, self.config.seed)
        weights = self.config.loss.weights
        output = self.model(
            batch.aatype,
            batch.residue_index,
            batch.mask,
            recycles,
            heads=heads_to_compute(weights),
        )
        terms = fold_loss(
            output,
            batch,
            weights,
            clamp=torch.where(batch.clamped, _CLAMP, torch.inf),
            resolution_range=self.config.loss.resolution,
        )
        if faults := _everyones(terms.faults(batch.ids), self.device):
            # A step along a NaN would destroy the model: stop before it.
            raise NonFiniteLossError(
                f"step {self.global_step}: the loss is not finite ({'; '.join(faults)})"
            )
        scores = lddt_ca(output.positions, batch.positions, batch.atom_mask)
        values = {"loss": terms.total, **terms.terms}
        self._micro_batches.append({k: v.detach().mean() for k, v in values.items()})
        self._train_scores.append(scores.per_chain)
        if len(self._micro_batches) == self._accumulation:
            self._log_step()
        return terms.total.mean()

    def _log_step(self) -> None:
        """Logs means over all chains of an optimizer step: its micro-batches, in all processes."""
        for name in self._micro_batches[0]:
            mean = torch.stack([values[name] for values in self._micro_batches]).mean()
            self.log(f"train/{name}", mean, sync_dist=True, batch_size=1)
        # A crop without a resolved pair has no score: mean over those that have one.
        scores = torch.cat(self._train_scores)
        found = torch.stack((scores.nansum(), scores.isfinite().sum()))
        total, count = self.trainer.strategy.reduce(found, reduce_op="sum").tolist()
        if count:
            self.log("train/lddt_ca", total / count, batch_size=1)
        self._micro_batches, self._train_scores = [], []

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Folds whole chains and keeps their lDDT-Cα."""
        output = self.model(
            batch.aatype, batch.residue_index, batch.mask, self.config.model.max_recycles, heads=()
        )
        scores = lddt_ca(output.positions, batch.positions, batch.atom_mask)
        self._scores.update(zip(batch.ids, scores.per_chain.tolist(), strict=True))

    def on_validation_epoch_end(self) -> None:
        """Logs the mean lDDT-Cα over all chains of all processes, each counted once."""
        shares: list[dict[str, float]] = [self._scores]
        if dist.is_available() and dist.is_initialized():
            shares = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(shares, self._scores)
        self._scores = {}
        scores = np.array(list({k: v for share in shares for k, v in share.items()}.values()))
        # A chain without a resolved pair has no score.
        if np.isfinite(scores).any():
            self.log("validation/lddt_ca", float(np.nanmean(scores)), sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam with its schedule stepped once per optimizer step."""
        optimizer, schedule = build_optimizer(self.model, self.config.optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": LRSchedulerConfigType(scheduler=schedule, interval="step"),
        }


def _everyones(faults: list[str], device: torch.device) -> list[str]:
    """The faults of all processes, so that all of them stop and none waits for another."""
    if not (dist.is_available() and dist.is_initialized()):
        return faults
    found = torch.tensor(len(faults), device=device)
    dist.all_reduce(found)
    if not found:
        return []
    shares: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(shares, faults)
    return [fault for share in shares for fault in share]


def recycles_at(step: int, most: int, seed: int) -> int:
    """Recycling passes of an optimizer step: uniform from 0 to `most`, the same everywhere."""
    return int(np.random.default_rng((seed, step)).integers(most + 1))
