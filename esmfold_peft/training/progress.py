"""What a person sees of a training, and how fast it goes."""

import sys
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from esmfold_peft.config import TrainConfig
from esmfold_peft.training.progress_views import Bar, Lines, Status, View
from esmfold_peft.training.rates import Rates, peak_memory


@runtime_checkable
class Reporting(Protocol):
    """A module that keeps its latest metrics as plain numbers, which cost no wait for a GPU.

    Attributes:
        step: optimizer steps done, those before a resume included.
        latest: by name; of them train/loss, train/lddt_ca, validation/lddt_ca and
            train/skipped_steps (their count so far) are shown where they are there.
    """

    latest: dict[str, float]

    @property
    def step(self) -> int: ...  # noqa: D102


class TrainingProgress(Callback):
    """Counts steps and time, and shows them.

    The module must be `Reporting`. Who follows the steps calls `stepped` when the module's metrics
    are new, and `validation_started`, `validation_advanced` and `validation_ended`.

    Args:
        config: of the run.
        view: how it is shown by the first process; None takes a bar where there is a terminal, and
            otherwise lines.
        clock: gives seconds.
    """

    def __init__(
        self,
        config: TrainConfig,
        view: View | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._view = view or (Bar() if sys.stderr.isatty() else Lines())
        self._clock = clock
        self._rates = Rates()
        self._module: Reporting | None = None
        self._device = torch.device("cpu")
        self._step = 0
        self._memory = 0.0
        self._started = self._pause_began = clock()
        self._paused = self._last_pause = 0.0  # s, in validations
        self._validated, self._to_validate = 0, 0  # chains

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Learns what is shown."""
        assert isinstance(pl_module, Reporting)
        self._module = pl_module
        if not trainer.is_global_zero:
            self._view = View()
        self._step = pl_module.step
        self._device = trainer.strategy.root_device

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        self._started, self._paused = self._clock(), 0.0
        self._rates = Rates()
        self._count()
        self._view.started(self._status())

    def stepped(self) -> None:
        """An optimizer step is done."""
        self._count()
        validating = self._config.data.validation is not None
        every = self._config.engine.validate_every
        self._view.advanced(self._status(), not validating and self._step % every == 0)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends the view."""
        self._view.ended()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Gives the terminal back."""
        self._view.ended()

    def validation_started(self, total_chains: int) -> None:
        """The steps rest while chains are validated.

        Args:
            total_chains: that this process will report.
        """
        self._pause_began = self._clock()
        self._validated, self._to_validate = 0, total_chains
        self._view.validating(self._step, 0, total_chains)

    def validation_advanced(self, chains: int) -> None:
        """So many more chains are done."""
        self._validated += chains
        self._view.validating(self._step, self._validated, self._to_validate)

    def validation_ended(self, score: float) -> None:
        """The steps go on.

        Args:
            score: mean lDDT-Cα of the validation, which becomes the latest.
        """
        self._last_pause = self._clock() - self._pause_began
        self._paused += self._last_pause
        if self._module is not None:
            self._module.latest["validation/lddt_ca"] = score
        self._view.validated(self._status())

    def rates(self) -> dict[str, float]:
        """Steps and chains per second (NaN before the first step), and the peak memory in GiB.

        All are of the run but the memory, which is this process's.
        """
        rate = self._rates.steps_per_second
        return {
            "steps_per_second": rate,
            "chains_per_second": rate * self._config.engine.batch_size,
            "peak_memory_gib": self._memory,
        }

    def _count(self) -> None:
        if self._module is not None:
            self._step = self._module.step
        self._rates.observe(self._step, self._clock() - self._started - self._paused)
        self._memory = peak_memory(self._device)

    def _status(self) -> Status:
        rates = self.rates()
        return Status(
            step=self._step,
            total=max(self._config.engine.steps, self._step),
            metrics=self._module.latest if self._module is not None else {},
            steps_per_second=rates["steps_per_second"],
            chains_per_second=rates["chains_per_second"],
            memory=self._memory,
            elapsed=self._clock() - self._started,
            left=self._left(),
        )

    def _left(self) -> float:
        """Seconds until the end: of steps at the present rate, and of validations like the last."""
        every, seconds = self._config.engine.validate_every, self._rates.seconds_for
        end = max(self._config.engine.steps, self._step)
        validations = end // every - self._step // every
        return seconds(end - self._step) + validations * self._last_pause
