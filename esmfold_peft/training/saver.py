"""Saving the model while it trains."""

from contextlib import AbstractContextManager, nullcontext

import pytorch_lightning as pl
from pytorch_lightning.strategies import DeepSpeedStrategy

from esmfold_peft.console import report
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.training.module import FoldingModule, NonFiniteLossError
from esmfold_peft.training.run_directory import kept_parameters, save_model


class Saver(pl.Callback):
    """Saves the model at every validation, and when a training ends or is interrupted."""

    def __init__(self) -> None:
        self._saved_step = -1

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the model that was scored."""
        self._save(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Saves as often where nothing is validated."""
        if due_without_validation(trainer, pl_module):
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the last model."""
        self._save(trainer, pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Saves what has been learnt until Ctrl-C or a loss that is not finite.

        After any other error the model may be damaged.
        """
        if isinstance(exception, (KeyboardInterrupt, NonFiniteLossError)):
            self._save(trainer, pl_module)
            if trainer.is_global_zero:
                report(f"interrupted at step {trainer.global_step}; the model is saved")

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.global_step == self._saved_step:
            return
        self._saved_step = trainer.global_step
        assert isinstance(module, FoldingModule)
        with _whole_parameters(trainer, module.model):
            if trainer.is_global_zero:
                save_model(module.config.run, module.model, module.base_hash)


def due_without_validation(trainer: pl.Trainer, module: pl.LightningModule) -> bool:
    """Whether a run without validation chains has come to where it would validate."""
    assert isinstance(module, FoldingModule)
    config, step = module.config, trainer.global_step
    return config.data.validation is None and step > 0 and step % config.engine.validate_every == 0


def _whole_parameters(trainer: pl.Trainer, model: FoldingModel) -> AbstractContextManager:
    """Gathers the parameters to save that ZeRO stage 3 has spread over the processes."""
    strategy = trainer.strategy
    if not isinstance(strategy, DeepSpeedStrategy) or not strategy.zero_stage_3:
        return nullcontext()
    from deepspeed import zero

    return zero.GatheredParameters(kept_parameters(model))
