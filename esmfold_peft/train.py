"""`esmfold-peft train`: adapter, trunk and head trained together."""

import logging
import warnings

import pytorch_lightning as pl

from esmfold_peft.adapters.insert import trainable_adapter_parameters
from esmfold_peft.config import TrainConfig
from esmfold_peft.console import report
from esmfold_peft.datasets.datamodule import ChainDataModule
from esmfold_peft.datasets.leaks import Leak
from esmfold_peft.errors import UserError
from esmfold_peft.model.build import build_model
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.kernels import CHECKED_LENGTH, check_kernels
from esmfold_peft.training.leak_guard import guard
from esmfold_peft.training.module import FoldingModule
from esmfold_peft.training.optim import parameter_groups
from esmfold_peft.training.progress import progress
from esmfold_peft.training.run_directory import create_run, refuse_existing_run
from esmfold_peft.training.saver import Saver
from esmfold_peft.training.trainer import build_trainer


def run(config: TrainConfig) -> int:
    """Trains a model and leaves it in the run's folder.

    Raises:
        UserError: a setting, a store, the base weights or the kernels are wrong, or training chains
            leak validation chains; nothing has been written then. Later: the loss of a chain is not
            finite.
    """
    _quiet()
    trainer = build_trainer(config, [Saver(), progress()])
    if trainer.is_global_zero:
        refuse_existing_run(config)
    data = ChainDataModule(config)
    leaks: list[Leak] = []
    if trainer.is_global_zero and data.validation is not None:
        leaks = guard(data.train, data.validation, allow=config.allow_leaks)
    model, base_hash = build_model(config)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("model.freeze: with adapter.kind none nothing is left to train")
    check_kernels(
        config.model,
        trainer.strategy.root_device,
        length=max(config.data.crop, CHECKED_LENGTH),  # short chains never reach some kernels
        bf16=model.bf16,
    )
    if trainer.is_global_zero:
        create_run(config, model, base_hash, leaks)
        _describe(model, config)
    # Processes draw their own dropout; weights, crops and recycling have seeds of their own.
    pl.seed_everything(config.seed + trainer.global_rank, workers=True, verbose=False)
    trainer.fit(FoldingModule(config, model, base_hash), datamodule=data)
    return 0


def _describe(model: FoldingModel, config: TrainConfig) -> None:
    groups = parameter_groups(model)
    counts = {name: sum(p.numel() for p in group) for name, group in groups.items()}
    adapter = trainable_adapter_parameters(model.language_model)
    scale = model.language_model.adapter.scale if model.language_model.adapter else None
    report(
        f"run {config.run}: {config.adapter.kind} with {adapter:,} trainable parameters in the"
        " language model"
        + (f" (scale {scale:g})" if scale is not None else "")
        + f", {counts['trunk']:,} in the trunk, {counts['head']:,} in the head;"
        f" {config.engine.steps:,} steps of {config.engine.batch_size} chains",
    )


def _quiet() -> None:
    """Keeps Lightning's tips out of the log; its errors and warnings about the run stay."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        "Experiment logs directory.*exists and is not empty",  # config.yaml is there already
        "Grad strides do not match bucket view strides",  # DDP, of factors of rank 1
        "`broadcast_buffers` is deprecated",  # what replaces it is not in older PyTorch
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own call of PyTorch
    ):
        warnings.filterwarnings("ignore", message=message)
