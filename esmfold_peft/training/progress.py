"""What a person sees of a training: a bar in a terminal, lines in a log file."""

import sys
import time

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, RichProgressBar


def progress() -> Callback:
    """A progress bar where there is a terminal, otherwise a line at every validation."""
    return RichProgressBar() if sys.stderr.isatty() else ProgressLines()


class ProgressLines(Callback):
    """Prints losses and scores, and the seconds since the start, after each validation."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        self._started = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints one line."""
        if not trainer.is_global_zero:
            return
        metrics = trainer.callback_metrics
        names = ("train/loss", "train/lddt_ca", "validation/lddt_ca")
        parts = [f"{name} {float(metrics[name]):.3f}" for name in names if name in metrics]
        seconds = time.monotonic() - self._started
        print(f"step {trainer.global_step}: {', '.join(parts)}, {seconds:.0f} s", flush=True)
