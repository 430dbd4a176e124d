"""How fast a training goes, and how much memory it has taken."""

import math
import resource
from collections import deque

import torch

_WINDOW = 30.0  # s


class Rates:
    """Steps per second over the last half minute, or over the last step if it took longer.

    A mean since the start would keep the slow first steps for hours.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[int, float]] = deque()

    def observe(self, step: int, seconds: float) -> None:
        """Takes note of a step that is done.

        Args:
            step: steps done with this one; that of the start comes first.
            seconds: of training until then, without pauses such as validations.
        """
        self._seen.append((step, seconds))
        while len(self._seen) > 2 and seconds - self._seen[1][1] >= _WINDOW:
            self._seen.popleft()

    @property
    def steps_per_second(self) -> float:
        """NaN until two steps, or a step and the start, have been seen."""
        if len(self._seen) < 2:
            return math.nan
        (first, began), (last, ended) = self._seen[0], self._seen[-1]
        return (last - first) / (ended - began) if ended > began else math.nan

    def seconds_for(self, steps: int) -> float:
        """Time that some more steps will take; NaN while the rate is not known."""
        rate = self.steps_per_second
        return steps / rate if rate > 0 else math.nan


def peak_memory(device: torch.device) -> float:
    """Most memory in GiB that this process has had: of a GPU in tensors, of a CPU resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
