"""What Adam remembers of a parameter."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class AdamMoments:
    """What Adam remembers of a parameter.

    Attributes:
        exp_avg: running mean of its gradients, of the parameter's shape.
        exp_avg_sq: running mean of their squares.
        step: steps that it has made.
    """

    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: int
