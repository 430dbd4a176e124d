"""The moving average of the trained parameters."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from esmfold_peft.training.engines.engine_state import assemble
from esmfold_peft.training.engines.zero import held, release_gathered, shard


def decay_at(updates: int, decay: float) -> float:
    """How much of the average an update keeps, after `updates` others; `decay` in the end."""
    # DISCREPANCY: a constant 0.999 in AF2 (Suppl. 1.11.7). Such an average still has 37 % of the
    # untrained parameters after 1,000 steps; this one has forgotten them.
    return min(decay, (1 + updates) / (10 + updates))


class ExponentialAverage:
    """Exponential moving average of parameters, in float32 on their devices.

    Each process averages what it holds of a parameter: under ZeRO stage 3 its shard.

    Args:
        parameters: trained ones, by name. The average begins with their present values, so the
            Trainer's strategy must have been set up.
        decay: how much of the average an update keeps in the end.

    Attributes:
        updates: updates made.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.updates = 0
        self._decay = decay
        self._parameters = dict(parameters)
        self._averages = {name: held(p).clone() for name, p in self._parameters.items()}

    def update(self) -> None:
        """Takes the parameters into the average, after an optimizer step."""
        average = get_ema_multi_avg_fn(decay_at(self.updates, self._decay))
        values = [held(parameter) for parameter in self._parameters.values()]
        average(list(self._averages.values()), values, None)
        self.updates += 1

    @contextmanager
    def swapped(self, trainer: pl.Trainer) -> Iterator[None]:
        """Inside, the parameters are their average; afterwards exactly what they were (collective).

        No optimizer step may be made inside.
        """
        self._exchange(trainer)
        try:
            yield
        finally:
            self._exchange(trainer)

    def _exchange(self, trainer: pl.Trainer) -> None:
        release_gathered(trainer)
        for name, parameter in self._parameters.items():
            own, average = getattr(parameter, "ds_tensor", parameter), self._averages[name]
            # No number is copied, so none can change.
            own.data, average.data = average.data, own.data

    def read(self, trainer: pl.Trainer) -> dict[str, Tensor]:
        """The average as whole tensors on the CPU, by name; empty but in process 0 (collective)."""
        shards = {name: shard(p, self._averages[name]) for name, p in self._parameters.items()}
        return assemble(shards, trainer.strategy.root_device)

    def write(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Resumes from an average of whole tensors by name, the same in every process."""
        for name, parameter in self._parameters.items():
            part = shard(parameter, self._averages[name])
            part.values.copy_(part.cut(tensors[name]))
        self.updates = updates
