"""What happens between two optimizer steps: averaging, guarding, logging, saving, validating."""

import math
import os
import signal
from dataclasses import replace
from functools import partial

import pytorch_lightning as pl
import torch

from esmfold_peft.config import TrainConfig
from esmfold_peft.datasets.datamodule import ChainDataModule
from esmfold_peft.errors import UserError
from esmfold_peft.runs.checkpoint import (
    Best,
    Checkpoint,
    State,
    mark_validated,
    prune_checkpoints,
    write_checkpoint,
)
from esmfold_peft.runs.run_directory import export_model, kept_tensors
from esmfold_peft.runs.status import Name, Status, write_status
from esmfold_peft.runs.world import after_the_first
from esmfold_peft.training.comparison_metrics import comparison_metrics
from esmfold_peft.training.divergence import (
    GuardState,
    Observation,
    observe,
    observe_validation,
    on_plateau,
)
from esmfold_peft.training.ema import ExponentialAverage
from esmfold_peft.training.engines.engine_state import read_adam, read_parameters, write_adam
from esmfold_peft.training.failures import explained
from esmfold_peft.training.memory_test import attempt, bytes_of_moments
from esmfold_peft.training.metrics_file import RELATIVE_UPDATE
from esmfold_peft.training.module import FoldingModule
from esmfold_peft.training.nonfinite import keep_evidence
from esmfold_peft.training.plan import find_plan
from esmfold_peft.training.progress import TrainingProgress
from esmfold_peft.training.step_summary import StepSummary
from esmfold_peft.training.stop_signals import StopSignals
from esmfold_peft.training.validation import validate


class _ValidationStoppedError(Exception):
    """A process was asked to stop during a validation."""


class Supervisor(pl.Callback):
    """Keeps a training alive and honest.

    Args:
        config: the run's settings.
        signals: that ask it to stop.
        progress: what a person sees.

    Attributes:
        status: how the run stands.
    """

    data: ChainDataModule
    state: State

    def __init__(
        self, config: TrainConfig, signals: StopSignals, progress: TrainingProgress
    ) -> None:
        self.config = config
        self.signals = signals
        self.progress = progress
        self.status = Status("interrupted", 0, config.engine.steps)
        self._resumed: Checkpoint | None = None
        self._guard = GuardState()
        self._stopped = False

    def begin(self, data: ChainDataModule, state: State, resumed: Checkpoint | None) -> None:
        """Says what is trained and where it stands.

        Args:
            data: the run's chains.
            state: where the run stands.
            resumed: what it goes on from; None at its beginning.
        """
        self.data, self.state, self._resumed = data, state, resumed
        if state.guard:
            self._guard = GuardState.from_dict(state.guard)
        self.status = self._status("interrupted")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts Adam and the moving average back, and validates if that is still due."""
        module = _folding(pl_module)
        self._require_one_beginning(trainer)
        self.state = replace(self.state, processes=trainer.world_size)
        self._trained = {n: p for n, p in module.model.named_parameters() if p.requires_grad}
        module.average = ExponentialAverage(self._trained, self.config.optimizer.ema)
        with after_the_first(os.environ):  # all processes find that nothing fits
            module.plan = find_plan(
                module.config,
                trainer.strategy.root_device,
                partial(attempt, module),
                later=bytes_of_moments(module),
            )
        module.model.trunk.stack.recompute = module.plan.recompute
        module.asked_to_stop = lambda: self.signals.received is not None
        self._validation_loader = self.data.val_dataloader() if self.data.validation else None
        if self._resumed is not None:
            write_adam(trainer, self._trained, self._resumed.adam)
            module.average.write(self._resumed.average, self.state.ema_updates)
            if trainer.is_global_zero:  # it may have been killed between checkpoint and export
                tensors = self._resumed.weights | self._resumed.average
                export_model(self.config.run, module.model, tensors, self.state.base_sha256)
            self._resumed = None  # its tensors are not needed any more
        if not self.state.validated:
            self._validate(trainer, module)
        self._conclude(trainer, beginning=True)
        self._leave_together(trainer)  # without a step to make, no other hook is called

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Does all that follows an optimizer step."""
        module = _folding(pl_module)
        self._stopped = module.summary.stop
        self._take_in(trainer, module, module.summary)
        if self._guard.verdict is None:
            if self._checkpoint_due():
                self._save(trainer, module)
            if not (self.state.validated or self._stopped):
                self._validate(trainer, module)
        self._conclude(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves with the other processes."""
        self._leave_together(trainer)

    def _leave_together(self, trainer: pl.Trainer) -> None:
        """Waits for all processes before the first one ends, on which launchers stop the others."""
        if self.status.status in ("interrupted", "diverged"):
            trainer.strategy.barrier()
            self.signals.ignore_further()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Says in status.json that the run has ended, and how."""
        if not trainer.is_global_zero:
            return
        asked = isinstance(exception, (KeyboardInterrupt, SystemExit))
        cause = explained(exception, self.config) if isinstance(exception, RuntimeError) else None
        message = " ".join(str(cause or exception).split()) or type(exception).__name__
        self.status = self._status("interrupted" if asked else "failed", message=message)
        write_status(self.config.run, self.status)

    def _require_one_beginning(self, trainer: pl.Trainer) -> None:
        """Refuses to train from different checkpoints: network disks show new files late."""
        step = trainer.strategy.broadcast(self.state.step)
        if step != self.state.step:
            raise UserError(
                f"{self.config.run}: process {trainer.global_rank} finds the checkpoint of step"
                f" {self.state.step:,}, process 0 that of step {step:,}; try again when all"
                " machines see the same files"
            )

    def _take_in(self, trainer: pl.Trainer, module: FoldingModule, summary: StepSummary) -> None:
        """What was learnt, and what is known of it."""
        metrics = summary.metrics
        last = summary.step == self.config.engine.steps
        logged = summary.skipped or last or summary.step % self.config.log.every == 0
        if logged:
            metrics |= comparison_metrics(trainer, module.model, self.config.optimizer)
        if summary.skipped:
            keep_evidence(trainer, module, summary.step)
        self._guard = observe(
            self._guard,
            Observation(
                step=summary.step,
                loss=metrics["train/loss"],
                gradient_norm=metrics["gradient/total"],
                train_score=metrics["train/lddt_ca"],
                update=metrics.get(RELATIVE_UPDATE),
            ),
            self.config.guard,
            self.config.optimizer.warmup_steps,
        )
        self.state = replace(
            self.state,
            step=summary.step,
            ema_updates=module.average.updates,
            skipped_steps=self.state.skipped_steps + summary.skipped,
            guard=self._guard.to_dict(),
            validated=not self._validation_due(summary.step),
        )
        module.latest |= metrics
        if self.state.skipped_steps:
            module.latest["train/skipped_steps"] = float(self.state.skipped_steps)
        self.progress.stepped()
        if logged:
            self._log(trainer, metrics | self.progress.rates())

    def _validation_due(self, step: int) -> bool:
        engine = self.config.engine
        due = step % engine.validate_every == 0 or step == engine.steps
        return due and self.data.validation is not None

    def _checkpoint_due(self) -> bool:
        """Whether to save: also before a validation, which may take long and be killed."""
        step = self.state.step
        planned = step % self.config.checkpoints.every == 0 or step == self.config.engine.steps
        return planned or self._stopped or not self.state.validated

    def _save(self, trainer: pl.Trainer, module: FoldingModule) -> None:
        """Writes a checkpoint, and the model as others use it."""
        weights = read_parameters(trainer, kept_tensors(module.model))
        average = module.average.read(trainer)
        adam = read_adam(trainer, self._trained)
        if trainer.is_global_zero:
            run = self.config.run
            write_checkpoint(run, Checkpoint(self.state, weights, average, adam))
            prune_checkpoints(run, self.config.checkpoints.keep_last, self.state.best)
            export_model(run, module.model, weights | average, self.state.base_sha256)

    def _validate(self, trainer: pl.Trainer, module: FoldingModule) -> None:
        """Scores the validation chains; a stop ends it before its time, and it stays due."""
        assert self.data.validation is not None
        assert self._validation_loader is not None
        own = sum(map(len, self._validation_loader.batch_sampler))  # pyright: ignore
        self.progress.validation_started(own * (2 if self.config.engine.validate_raw else 1))
        try:
            found = validate(
                trainer,
                module,
                self._validation_loader,
                module.average,
                advanced=lambda chains: self._validation_advanced(trainer, chains),
            )
        except _ValidationStoppedError:
            return
        step, run, score = self.state.step, self.config.run, found.score
        best = self.state.best
        if math.isfinite(score) and (best is None or score > best.score):
            best = Best(step, score)
        self._guard = observe_validation(self._guard, step, score, self.config.guard)
        self.state = replace(
            self.state,
            validated=True,
            score=score if math.isfinite(score) else None,
            best=best,
            guard=self._guard.to_dict(),
        )
        self._log(trainer, found.metrics())
        if trainer.is_global_zero:
            found.write(run, step)
            mark_validated(run, self.state)
            prune_checkpoints(run, self.config.checkpoints.keep_last, best)
        module.latest |= found.metrics()
        self.progress.validation_ended(score)

    def _validation_advanced(self, trainer: pl.Trainer, chains: int) -> None:
        self.progress.validation_advanced(chains)
        asked = torch.tensor(
            float(self.signals.received is not None), device=trainer.strategy.root_device
        )
        if trainer.strategy.reduce(asked, reduce_op="sum") > 0:
            self._stopped = True
            raise _ValidationStoppedError

    def _log(self, trainer: pl.Trainer, metrics: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, self.state.step)

    def _conclude(self, trainer: pl.Trainer, *, beginning: bool = False) -> None:
        """Ends the run where it has come to an end, and writes how it stands."""
        verdict = self._guard.verdict
        if verdict is not None:
            self.status = self._status("diverged", verdict.message)
            self.status = replace(self.status, rule=verdict.rule, since=verdict.since)
        elif self._stopped:
            received = self.signals.received or signal.SIGTERM  # of another process
            self.status = self._status("interrupted", f"{received.name} was received")
        elif self.state.step >= self.config.engine.steps:
            slow = on_plateau(self._guard, self.config.guard)
            self.status = self._status("plateau" if slow else "converged")
        else:
            self.status = self._status("running")
        ended = self.status.status != "running"
        trainer.should_stop = ended
        written = ended or beginning or self._checkpoint_due()
        if written and trainer.is_global_zero:
            write_status(self.config.run, self.status)

    def _status(self, name: Name, message: str | None = None) -> Status:
        return Status(
            name,
            step=self.state.step,
            steps=self.config.engine.steps,
            message=message,
            skipped_steps=self.state.skipped_steps,
            validation=self.state.score,
            best=self.state.best,
        )


def _folding(module: pl.LightningModule) -> FoldingModule:
    assert isinstance(module, FoldingModule)
    return module
