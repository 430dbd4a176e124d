"""Linear layers as AlphaFold 2 initialises them (AF2 Suppl. 1.11.4), and the type they run in."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a unit normal cut off at ±2."""


def linear(
    c_in: int,
    c_out: int,
    *,
    init: Literal["lecun", "relu", "zero", "gate"] = "lecun",
    bias: bool = True,
) -> nn.Linear:
    """A linear layer with zero bias and weights from a truncated normal distribution.

    `init` is a variance of 1/c_in ("lecun"), 2/c_in before a ReLU ("relu"), all zero ("zero", for
    the last layer of a residual branch), or zero with bias 1 ("gate", before a sigmoid).
    """
    layer = nn.Linear(c_in, c_out, bias=bias)
    if bias:
        nn.init.constant_(layer.bias, 1.0 if init == "gate" else 0.0)
    if init in ("zero", "gate"):
        nn.init.zeros_(layer.weight)
        return layer
    std = math.sqrt({"lecun": 1.0, "relu": 2.0}[init] / c_in) / TRUNCATED_STD
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    return layer


def product_type(factor: Tensor) -> torch.dtype:
    """The type of matrix products with a tensor: autocast's where it is on, else its own."""
    kind = factor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else factor.dtype
