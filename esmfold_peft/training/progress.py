"""What a person sees of a training: a bar in a terminal, lines in a log file."""

import sys
import time

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from esmfold_peft.training.saver import due_without_validation

_SHOWN = {"train/loss": "loss", "train/lddt_ca": "lDDT", "validation/lddt_ca": "validation lDDT"}


def progress() -> Callback:
    """A progress bar where there is a terminal, otherwise a line at every validation."""
    return ProgressBar() if sys.stderr.isatty() else ProgressLines()


class ProgressLines(Callback):
    """Prints losses and scores, and the seconds since the start, as often as is validated."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._printed_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        self._started = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints one line."""
        self._print(trainer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Prints one line where nothing is validated."""
        if due_without_validation(trainer, pl_module):
            self._print(trainer)

    def _print(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        if trainer.is_global_zero and step != self._printed_step:
            self._printed_step = step
            seconds = time.monotonic() - self._started
            print(f"step {step}: {_metrics(trainer)}, {seconds:.0f} s", flush=True)


class ProgressBar(Callback):
    """Shows optimizer steps, the time left, losses and scores.

    Lightning's own bar counts micro-batches, so that it runs past its end where they are
    accumulated.
    """

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("training", total=None, metrics="")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Shows the bar."""
        self._bar.update(self._task, total=trainer.max_steps, completed=trainer.global_step)
        if trainer.is_global_zero:
            self._bar.start()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Moves the bar."""
        self._bar.update(self._task, completed=trainer.global_step, metrics=_metrics(trainer))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Says why the bar rests."""
        self._bar.update(self._task, description="validation")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Shows the new score."""
        self._bar.update(self._task, description="training", metrics=_metrics(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves the bar as it is."""
        self._bar.stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Gives the terminal back."""
        self._bar.stop()


def _metrics(trainer: pl.Trainer) -> str:
    """The latest loss, and lDDT-Cα in training and validation."""
    found = trainer.callback_metrics
    return ", ".join(f"{_SHOWN[key]} {float(found[key]):.3f}" for key in _SHOWN if key in found)
