"""What happens between two optimizer steps: guarding, logging, saving, validating."""

import math
import os
import signal
from dataclasses import asdict, replace
from functools import partial

import pytorch_lightning as pl
import torch

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
from esmfold_peft.training.metrics_file import METRICS, RELATIVE_UPDATE, MetricsFile
from esmfold_peft.training.nonfinite import keep_evidence
from esmfold_peft.training.plan import find_plan
from esmfold_peft.training.progress import TrainingProgress, View
from esmfold_peft.training.step import FoldingModule
from esmfold_peft.training.step_summary import StepSummary
from esmfold_peft.training.stop_signals import StopSignals
from esmfold_peft.training.validation import validate


class _ValidationStoppedError(Exception):
    """A process was asked to stop during a validation."""


class Supervisor(pl.Callback):
    """Judges, logs, saves and validates a training between its steps.

    `state` is where the run stands, `resumed` the checkpoint that it resumes from (None at its
    beginning); `signals` ask it to stop.

    Attributes:
        status: how the run stands.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: FoldingModule,
        data: ChainDataModule,
        state: State,
        resumed: Checkpoint | None,
        signals: StopSignals,
    ) -> None:
        self.trainer, self.module, self.data, self.state = trainer, module, data, state
        self.config = module.config
        self.signals = signals
        self.metrics = MetricsFile(self.config.run / METRICS)
        self._resumed = resumed
        self._guard = GuardState.from_dict(state.guard) if state.guard else GuardState()
        self._stopped = False
        self.status = self._status("interrupted")
        view = None if trainer.is_global_zero else View()
        self.progress = TrainingProgress(
            self.config, state.step, trainer.strategy.root_device, view
        )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts Adam and the moving average back, and validates if that is still due."""
        module = self.module
        self._require_one_beginning()
        self.state = replace(self.state, processes=trainer.world_size)
        self._trained = {n: p for n, p in module.model.named_parameters() if p.requires_grad}
        module.average = ExponentialAverage(self._trained, self.config.optimizer.ema)
        with after_the_first(os.environ):  # all processes find that nothing fits
            module.plan = find_plan(
                self.config,
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
            self._validate()
        self._conclude(beginning=True)
        self._leave_together()  # without a step to make, `on_train_end` is not called

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        self.progress.start(self.state.step)
        self.progress.show()

    def on_train_batch_end(self, *_: object, **named: object) -> None:
        """Does all that follows an optimizer step."""
        self._stopped = self.module.summary.stop
        self._take_in(self.module.summary)
        if self._guard.verdict is None:
            if self._checkpoint_due():
                self._save()
            if not (self.state.validated or self._stopped):
                self._validate()
        self._conclude()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves with the other processes."""
        self._leave_together()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Writes into status.json how the run has ended."""
        if not trainer.is_global_zero:
            return
        asked = isinstance(exception, (KeyboardInterrupt, SystemExit))
        cause = explained(exception, self.config) if isinstance(exception, RuntimeError) else None
        message = " ".join(str(cause or exception).split()) or type(exception).__name__
        self.status = self._status("interrupted" if asked else "failed", message)
        write_status(self.config.run, self.status)

    def _require_one_beginning(self) -> None:
        """Refuses to train from different checkpoints: network disks show new files late."""
        step = self.trainer.strategy.broadcast(self.state.step)
        if step != self.state.step:
            raise UserError(
                f"{self.config.run}: process {self.trainer.global_rank} finds the checkpoint of"
                f" step {self.state.step:,}, process 0 that of step {step:,}; try again when all"
                " machines see the same files"
            )

    def _take_in(self, summary: StepSummary) -> None:
        """Judges, counts, shows and logs a step."""
        config, metrics = self.config, summary.metrics
        last = summary.step == config.engine.steps
        logged = summary.skipped or last or summary.step % config.log.every == 0
        if logged:
            metrics |= comparison_metrics(self.trainer, self.module.model, config.optimizer)
        if summary.skipped:
            keep_evidence(self.trainer, self.module, summary.step)
        observation = Observation(
            step=summary.step,
            loss=metrics["train/loss"],
            gradient_norm=metrics["gradient/total"],
            train_score=metrics["train/lddt_ca"],
            update=metrics.get(RELATIVE_UPDATE),
        )
        self._guard = observe(self._guard, observation, config.guard, config.optimizer.warmup_steps)
        due = last or summary.step % config.engine.validate_every == 0
        self.state = replace(
            self.state,
            step=summary.step,
            ema_updates=self.module.average.updates,
            skipped_steps=self.state.skipped_steps + summary.skipped,
            guard=asdict(self._guard),
            validated=not due or self.data.validation is None,
        )
        self.progress.stepped(summary.step, metrics, self.state.skipped_steps)
        if logged:
            self._log(metrics | self.progress.rates())

    def _checkpoint_due(self) -> bool:
        """Whether to save: also before a validation, which may take long and be killed."""
        step = self.state.step
        planned = step % self.config.checkpoints.every == 0 or step == self.config.engine.steps
        return planned or self._stopped or not self.state.validated

    def _save(self) -> None:
        """Writes a checkpoint, and the model as others use it."""
        trainer, model, run = self.trainer, self.module.model, self.config.run
        weights = read_parameters(trainer, kept_tensors(model))
        average = self.module.average.read(trainer)
        adam = read_adam(trainer, self._trained)
        if trainer.is_global_zero:
            write_checkpoint(run, Checkpoint(self.state, weights, average, adam))
            prune_checkpoints(run, self.config.checkpoints.keep_last, self.state.best)
            export_model(run, model, weights | average, self.state.base_sha256)

    def _validate(self) -> None:
        """Scores the validation chains; if it is stopped, it stays due."""
        loader = self._validation_loader
        assert loader is not None
        own = sum(map(len, loader.batch_sampler))  # pyright: ignore
        self.progress.validation_started(own * (2 if self.config.engine.validate_raw else 1))
        try:
            found = validate(self.trainer, self.module, loader, self._validation_advanced)
        except _ValidationStoppedError:
            return
        step, score, metrics, best = self.state.step, found.score, found.metrics(), self.state.best
        known = math.isfinite(score)
        if known and (best is None or score > best.score):
            best = Best(step, score)
        self._guard = observe_validation(self._guard, step, score, self.config.guard)
        self.state = replace(
            self.state,
            validated=True,
            score=score if known else None,
            best=best,
            guard=asdict(self._guard),
        )
        self._log(metrics)
        if self.trainer.is_global_zero:
            found.write(self.config.run, step)
            mark_validated(self.config.run, self.state)
            prune_checkpoints(self.config.run, self.config.checkpoints.keep_last, best)
        self.progress.validation_ended(metrics)

    def _validation_advanced(self, chains: int) -> None:
        self.progress.validation_advanced(chains)
        strategy = self.trainer.strategy
        asked = torch.tensor(float(self.module.asked_to_stop()), device=strategy.root_device)
        if strategy.reduce(asked, reduce_op="sum") > 0:
            self._stopped = True
            raise _ValidationStoppedError

    def _log(self, metrics: dict[str, float]) -> None:
        if self.trainer.is_global_zero:
            self.metrics.log(metrics, self.state.step)
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, self.state.step)

    def _conclude(self, *, beginning: bool = False) -> None:
        """Ends the run if it is over, and writes how it stands."""
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
        self.trainer.should_stop = ended
        if self.trainer.is_global_zero and (ended or beginning or self._checkpoint_due()):
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

    def _leave_together(self) -> None:
        """Waits for all processes before the first one ends, on which launchers stop the others."""
        if self.status.status in ("interrupted", "diverged"):
            self.trainer.strategy.barrier()
            self.signals.ignore_further()
