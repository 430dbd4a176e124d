"""`esmfold-peft train`: adapter, trunk and head trained together."""

import logging
import os
import signal
import warnings
from contextlib import ExitStack
from dataclasses import dataclass

import pytorch_lightning as pl

from esmfold_peft.adapters.insert import trainable_adapter_parameters
from esmfold_peft.config import TrainConfig
from esmfold_peft.config.unused import refuse_unused
from esmfold_peft.console import report
from esmfold_peft.datasets.datamodule import ChainDataModule
from esmfold_peft.datasets.leaks import Leak
from esmfold_peft.disk.files import lock_folder, make_folder
from esmfold_peft.errors import LostProcessError, UserError
from esmfold_peft.model.folding import FoldingModel, parameter_groups
from esmfold_peft.runs.build import build_model
from esmfold_peft.runs.checkpoint import Checkpoint, State, forget_newer
from esmfold_peft.runs.run_directory import (
    begin_session,
    create_run,
    refuse_existing_run,
    remove_leftovers,
    restore_provenance,
)
from esmfold_peft.runs.status import EXIT_CODES, Status, ended_status
from esmfold_peft.runs.world import after_the_first
from esmfold_peft.training.beginning import (
    first_state,
    is_begun,
    load_checkpoint,
    load_start,
    newest_checkpoint,
    require_same_run,
)
from esmfold_peft.training.choices import decided
from esmfold_peft.training.engines.trainer import build_trainer
from esmfold_peft.training.failures import explained
from esmfold_peft.training.leak_guard import LEAK_CHECK, guard
from esmfold_peft.training.loggers import build_loggers
from esmfold_peft.training.metrics_file import MetricsFile
from esmfold_peft.training.module import FoldingModule
from esmfold_peft.training.progress import TrainingProgress
from esmfold_peft.training.stop_signals import StopSignals
from esmfold_peft.training.supervisor import Supervisor


def run(config: TrainConfig) -> int:
    """Trains a model and leaves it in the run's folder.

    Returns:
        0 when all steps are done, 3 if the run has diverged, 75 if it was asked to stop and can go
        on.

    Raises:
        UserError: a setting, a store or the base weights are wrong, training chains leak validation
            chains, or the run exists already; nothing has been written then. Later: there is not
            enough memory, or the disk is full.
        KeyboardInterrupt: by Ctrl-C; the run is saved.
    """
    _quiet()
    with StopSignals() as signals, ExitStack() as opened:
        # All processes of a node would report the same error here, so only the first one does.
        with after_the_first(os.environ, of_node=True):
            begun = _begin(config, signals, opened)
        status = begun if isinstance(begun, Status) else _fit(begun)
        if status.status == "interrupted" and signals.received == signal.SIGINT:
            raise KeyboardInterrupt
        return EXIT_CODES[status.status]


@dataclass(frozen=True)
class _Training:
    """A training that can begin."""

    trainer: pl.Trainer
    module: FoldingModule
    data: ChainDataModule
    supervisor: Supervisor


def _begin(config: TrainConfig, signals: StopSignals, opened: ExitStack) -> _Training | Status:
    """Checks and builds all that a training needs; or how it has ended before."""
    begun = is_begun(config)
    if not begun:
        refuse_unused(config)
    checkpoint = newest_checkpoint(config)
    start = 0 if checkpoint is None else checkpoint.state.step
    progress = TrainingProgress(config)
    supervisor = Supervisor(config, signals, progress)
    metrics, *others = build_loggers(config.log, config.run, start)
    trainer = build_trainer(config, [progress, supervisor], [metrics, *others], start)
    if trainer.is_global_zero:
        if begun:
            opened.enter_context(lock_folder(config.run))
            remove_leftovers(config.run)
            require_same_run(config, checkpoint)
        else:
            refuse_existing_run(config)
    ended = ended_status(config) if begun else None
    if ended is not None:
        return ended
    # The run's folder keeps the settings as they were given, for another machine.
    settings, decision = decided(config)
    data = ChainDataModule(settings, start)
    leaks: list[Leak] = []
    if trainer.is_global_zero and data.validation is not None and checkpoint is None:
        known = config.run.parent / LEAK_CHECK  # of the search that this is a trial of
        leaks = guard(data.train, data.validation, allow=config.allow_leaks, known=known)
    model, state = _model(settings, checkpoint)
    if trainer.is_global_zero:
        if not begun:  # another command may have begun it in the meantime
            make_folder(config.run)
            opened.enter_context(lock_folder(config.run))
            refuse_existing_run(config)
            remove_leftovers(config.run)
        if checkpoint is None:
            create_run(config, model, state.base_sha256, leaks)
        else:
            forget_newer(config.run, start)
            restore_provenance(config, model, state.base_sha256)
        begin_session(config, start, trainer.world_size)
        assert isinstance(metrics, MetricsFile)
        metrics.rewind(start)
        _describe(model, config, start)
        if decision:
            report(decision)
    supervisor.begin(data, state, checkpoint)
    return _Training(trainer, FoldingModule(settings, model, start), data, supervisor)


def _fit(training: _Training) -> Status:
    """Trains, and says how it has ended."""
    trainer, config = training.trainer, training.module.config
    try:
        trainer.fit(training.module, datamodule=training.data)
    except SystemExit:  # what Lightning makes of a second Ctrl-C
        raise KeyboardInterrupt from None
    except RuntimeError as error:
        # Who has only lost another process has nothing to add to what that one says.
        with after_the_first(os.environ, kind=LostProcessError):
            raise explained(error, config) or error from error
    status = training.supervisor.status
    if trainer.is_global_zero:
        report(f"run {config.run}: {status.sentence()}")
    return status


def _model(config: TrainConfig, checkpoint: Checkpoint | None) -> tuple[FoldingModel, State]:
    """The model at the start of this process, and where the run stands."""
    model, base_hash = build_model(config)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("model.freeze: with adapter.kind none nothing is left to train")
    if checkpoint is not None:
        load_checkpoint(config, model, base_hash, checkpoint)
    elif config.start_from is not None:
        load_start(config, model, base_hash)
    state = first_state(config, model, base_hash) if checkpoint is None else checkpoint.state
    return model, state


def _describe(model: FoldingModel, config: TrainConfig, start: int) -> None:
    groups = parameter_groups(model)
    counts = {name: sum(p.numel() for p in group) for name, group in groups.items()}
    adapter = trainable_adapter_parameters(model.language_model)
    own = model.language_model.adapter
    scale = own.scale if own else None
    done = f", of which {start:,} are done" if start else ""
    if start > config.engine.steps:
        done = f"; {start:,} are done already, nothing is left to train"
    report(
        f"run {config.run}: {config.adapter.kind} with {adapter:,} trainable parameters in the"
        " language model"
        + (f" (scale {scale:g})" if scale is not None else "")
        + f", {counts['trunk']:,} in the trunk, {counts['head']:,} in the head;"
        f" {config.engine.steps:,} steps of {config.engine.batch_size} chains{done}"
    )
    for line in own.rank_warnings() if own else ():
        report(line)


def _quiet() -> None:
    """Keeps Lightning's tips out of the log; its errors and warnings about the run stay."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        "The `srun` command is available on your system",  # and this is no job of it
        "Grad strides do not match bucket view strides",  # DDP, of factors of rank 1
        "`broadcast_buffers` is deprecated",  # what replaces it is not in older PyTorch
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own call of PyTorch
    ):
        warnings.filterwarnings("ignore", message=message)
