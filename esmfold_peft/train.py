"""`esmfold-peft train`: adapter, trunk and head trained together."""

import logging
import time
import warnings
from contextlib import AbstractContextManager, nullcontext

import pytorch_lightning as pl
from pytorch_lightning.strategies import DeepSpeedStrategy
from rich.console import Console

from esmfold_peft.adapters.insert import trainable_adapter_parameters
from esmfold_peft.config import TrainConfig
from esmfold_peft.datasets.datamodule import ChainDataModule
from esmfold_peft.model.build import build_model
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.training.module import FoldingModule
from esmfold_peft.training.optim import parameter_groups
from esmfold_peft.training.run_directory import create_run, refuse_existing_run, save_model
from esmfold_peft.training.trainer import build_trainer


def run(config: TrainConfig) -> int:
    """Trains a model and leaves it in the run's folder.

    Raises:
        UserError: a setting, a manifest or the base weights are wrong; nothing has been written
            then.
    """
    _quiet()
    if pl.utilities.rank_zero_only.rank == 0:
        refuse_existing_run(config)
    data = ChainDataModule(config)
    model, base_hash = build_model(config)
    saver = _Saver(config, base_hash)
    trainer = build_trainer(config, config.run, [saver])
    if trainer.is_global_zero:
        create_run(config, base_hash)
        _describe(model, config)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    trainer.fit(FoldingModule(config, model), datamodule=data)
    return 0


class _Saver(pl.Callback):
    """Saves the model after validations and at the end, and reports where no bar is shown."""

    def __init__(self, config: TrainConfig, base_hash: str) -> None:
        self.config = config
        self.base_hash = base_hash
        self.started = time.monotonic()
        self.saved_at = -1

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer, pl_module.model)
        if trainer.progress_bar_callback is None and trainer.is_global_zero:
            score = trainer.callback_metrics["validation/lddt_ca"]
            seconds = time.monotonic() - self.started
            print(
                f"step {trainer.global_step}: validation lDDT-Cα {score:.3f}, {seconds:.0f} s",
                flush=True,
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer, pl_module.model)

    def _save(self, trainer: pl.Trainer, model: FoldingModel) -> None:
        if trainer.global_step == self.saved_at:
            return
        self.saved_at = trainer.global_step
        with _whole_parameters(trainer, model):
            if trainer.is_global_zero:
                save_model(self.config.run, model, self.base_hash)


def _whole_parameters(trainer: pl.Trainer, model: FoldingModel) -> AbstractContextManager:
    """Gathers the trainable parameters that ZeRO stage 3 has spread over the processes."""
    strategy = trainer.strategy
    if not isinstance(strategy, DeepSpeedStrategy) or not strategy.zero_stage_3:
        return nullcontext()
    from deepspeed import zero

    return zero.GatheredParameters([p for p in model.parameters() if p.requires_grad])


def _describe(model: FoldingModel, config: TrainConfig) -> None:
    groups = parameter_groups(model)
    counts = {name: sum(p.numel() for p in group) for name, group in groups.items()}
    adapter = trainable_adapter_parameters(model.language_model)
    scale = model.language_model.adapter.scale if model.language_model.adapter else None
    Console(stderr=True).print(
        f"run {config.run}: {config.adapter.kind} with {adapter:,} trainable parameters in the"
        " language model"
        + (f" (scale {scale:g})" if scale is not None else "")
        + f", {counts['trunk']:,} in the trunk, {counts['head']:,} in the head;"
        f" {config.engine.steps:,} steps of {config.engine.batch_size} chains",
        highlight=False,
    )


def _quiet() -> None:
    """Keeps Lightning's tips out of the log; its errors and warnings about the run stay."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
