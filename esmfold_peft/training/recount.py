"""Counting a resumed run's micro-batches anew."""

from typing import Any

import pytorch_lightning as pl


class Recount(pl.Callback):
    """Lets a run go on from whole optimizer steps, with any number of micro-batches in each.

    Lightning's checkpoint counts micro-batches, and the count decides when the optimizer steps and
    when the model is validated. It is wrong for a run whose steps now have more or fewer of them,
    and for a checkpoint that was written between two steps, whose gradients so far are lost.
    """

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Sets Lightning's count to what the optimizer steps done amount to."""
        done = checkpoint["global_step"] * trainer.accumulate_grad_batches
        counts = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for scope in ("total", "current"):
            # How far the last one came tells Lightning where in its loop it was saved.
            shift = done - counts[scope]["ready"]
            counts[scope] = {stage: number + shift for stage, number in counts[scope].items()}
