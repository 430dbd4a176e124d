"""`esmfold-peft train`: adapter, trunk and head trained together."""

import logging
import os
import signal
import warnings
from contextlib import ExitStack

from esmfold_peft.adapters.insert import trainable_adapter_parameters
from esmfold_peft.config import TrainConfig
from esmfold_peft.config.unused import refuse_unused
from esmfold_peft.console import report
from esmfold_peft.datasets.datamodule import ChainDataModule
from esmfold_peft.datasets.leaks import Leak
from esmfold_peft.disk.files import make_folder
from esmfold_peft.disk.locks import lock_folder
from esmfold_peft.errors import LostProcessError
from esmfold_peft.model.folding import FoldingModel, parameter_groups
from esmfold_peft.runs.checkpoint import forget_newer
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
    newest_checkpoint,
    require_same_run,
    resumes,
    starting_point,
)
from esmfold_peft.training.choices import decided
from esmfold_peft.training.engines.trainer import build_trainer
from esmfold_peft.training.failures import explained
from esmfold_peft.training.leak_guard import LEAK_CHECK, check_leaks, refuse_leaks
from esmfold_peft.training.loggers import build_loggers
from esmfold_peft.training.step import FoldingModule
from esmfold_peft.training.stop_signals import StopSignals
from esmfold_peft.training.supervisor import Supervisor


def run(config: TrainConfig) -> int:
    """Trains a model and leaves it in the run's folder.

    Returns:
        0 when all steps are done, 3 if the run has diverged, 75 if it was asked to stop and can be
        resumed.

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
            ready = _set_up(config, signals, opened)
        status = ready if isinstance(ready, Status) else _fit(ready)
        if status.status == "interrupted" and signals.received == signal.SIGINT:
            raise KeyboardInterrupt
        return EXIT_CODES[status.status]


def _set_up(config: TrainConfig, signals: StopSignals, opened: ExitStack) -> Supervisor | Status:
    """Checks and builds all that a training needs; for a run that has ended before, its status."""
    resumed = resumes(config)
    if not resumed:
        refuse_unused(config)
    checkpoint = newest_checkpoint(config)
    start = 0 if checkpoint is None else checkpoint.state.step
    trainer = build_trainer(config, build_loggers(config.log, config.run, start), start)
    first = trainer.is_global_zero
    if resumed and first:
        _take_folder(config, opened)
        require_same_run(config, checkpoint)
    elif first:
        refuse_existing_run(config)
    if resumed and (ended := ended_status(config)) is not None:
        return ended

    settings, decision = decided(config)
    data = ChainDataModule(settings, start)
    leaks = _allowed_leaks(config, data) if first and checkpoint is None else []
    model, state = starting_point(settings, checkpoint)
    module = FoldingModule(settings, model, start)
    supervisor = Supervisor(trainer, module, data, state, checkpoint, signals)
    trainer.callbacks.append(supervisor)  # pyright: ignore[reportAttributeAccessIssue]
    if not first:
        return supervisor

    if not resumed:
        _take_folder(config, opened, new=True)
    # The run's folder keeps the settings as they were given, for another machine.
    if checkpoint is None:
        create_run(config, model, state.base_sha256, leaks)
    else:
        forget_newer(config.run, start)
        restore_provenance(config, model, state.base_sha256)
    begin_session(config, start, trainer.world_size)
    supervisor.metrics.rewind(start)
    _describe(model, config, start)
    if decision:
        report(decision)
    return supervisor


def _take_folder(config: TrainConfig, opened: ExitStack, *, new: bool = False) -> None:
    """Locks the run's folder for this process, and removes what a kill has left half written."""
    make_folder(config.run)
    opened.enter_context(lock_folder(config.run))
    if new:  # another command may have started the run meanwhile
        refuse_existing_run(config)
    remove_leftovers(config.run)


def _allowed_leaks(config: TrainConfig, data: ChainDataModule) -> list[Leak]:
    """Training chains that leak validation chains, where that is allowed; refused otherwise."""
    if data.validation is None:
        return []
    known = config.run.parent / LEAK_CHECK  # of the search that this is a trial of
    check = check_leaks(data.train, data.validation, known)
    return refuse_leaks(check, data.train, data.validation, config.allow_leaks)


def _fit(supervisor: Supervisor) -> Status:
    """Trains, and reports how it has ended."""
    trainer, config = supervisor.trainer, supervisor.config
    try:
        trainer.fit(supervisor.module, datamodule=supervisor.data)
    except SystemExit:  # what Lightning makes of a second Ctrl-C
        raise KeyboardInterrupt from None
    except RuntimeError as error:
        # A process that has only lost another one leaves it to that one to report why.
        with after_the_first(os.environ, kind=LostProcessError):
            raise explained(error, config) or error from error
    finally:
        supervisor.progress.end()
    if trainer.is_global_zero:
        report(f"run {config.run}: {supervisor.status.sentence()}")
    return supervisor.status


def _describe(model: FoldingModel, config: TrainConfig, start: int) -> None:
    """Reports what is trained, for how long, and what the adapter warns of."""
    counts = {n: sum(p.numel() for p in group) for n, group in parameter_groups(model).items()}
    adapter, steps = model.language_model.adapter, config.engine.steps
    trained = trainable_adapter_parameters(model.language_model)
    scale = f" (scale {adapter.scale:g})" if adapter and adapter.scale is not None else ""
    done = f"; {start:,} are done already" if start else ""
    if start > steps:
        done += ", nothing is left to train"
    report(
        f"run {config.run}: {config.adapter.kind} with {trained:,} trainable parameters in the"
        f" language model{scale}, {counts['trunk']:,} in the trunk, {counts['head']:,} in the head;"
        f" {steps:,} steps of {config.engine.batch_size} chains{done}"
    )
    for line in adapter.rank_warnings() if adapter else ():
        report(line)


def _quiet() -> None:
    """Keeps Lightning's tips out of the log; its errors and warnings about the run stay."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        "The `srun` command is available on your system",  # but this process is not its job
        "Grad strides do not match bucket view strides",  # DDP, of factors of rank 1
        "`broadcast_buffers` is deprecated",  # what replaces it is not in older PyTorch
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own call of PyTorch
    ):
        warnings.filterwarnings("ignore", message=message)
