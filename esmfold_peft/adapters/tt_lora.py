"""TT-LoRA: every update is one tensor train (Anjum et al. 2024, arXiv 2408.01008).

ΔWᵀ = s · G₁ · ... · G₆ for each layer and matrix, the first cores over the modes of the inputs, the
last ones over those of the outputs. The bond between them has at most r channels: cut there, the
train is a product of two thin factors, and ΔW is never formed. The authors scale by alpha itself
(scaling "constant"); with "alpha/r" and "alpha/sqrt(r)" r is the configured rank, although
bonds are cut to what a train can use: alpha means the same for every method.

The modes, for a matrix (480, 480): those of the inputs are 10, 8, 6, those of the outputs 6, 8, 10.
With i₁ < 10, ..., i₃ < 6, o₁ < 6, ..., o₃ < 10,

    ΔW[(o₁·8 + o₂)·10 + o₃, (i₃·8 + i₂)·10 + i₁] = s · G₁[i₁] G₂[i₂] G₃[i₃] G₄[o₁] G₅[o₂] G₆[o₃].

This is the train of the authors' contraction programs (TT-LoRA MoE, arXiv 2504.21190, and their
later library). The program of the first paper forms ΔW and reads its entries row by row, the
outputs' modes first: from its last core to its first, its train is ours with the outputs' digits
reversed, o₁ the fastest: row (o₃·8 + o₂)·6 + o₁ there is row (o₁·8 + o₂)·10 + o₃ here. Both can be
imported (`tt_lora_files`).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from esmfold_peft.adapters.base import AdaptedModel, AttentionShape, uniform
from esmfold_peft.adapters.low_rank import LowRankAdapter, Pair
from esmfold_peft.adapters.tensor_train import (
    bonds,
    contract,
    core_shapes,
    mode_sizes,
    random_cores,
    tt_svd,
)
from esmfold_peft.config import AdapterConfig, Target


class TTLoRA(LowRankAdapter):
    """One train with bonds of r for every layer l and adapted matrix, i to o.

    With init "unit" the inputs' cores start as LoRA's A would (entries of standard deviation
    1/√(3i)), and the last core at zero. With the others ΔW is not zero at the start.

    With "paper" each matrix draws a ΔW uniform in ±√(2/(3i)), and the cores are those of its TT-SVD
    cut to bonds of r, as the first paper's program starts them: the first core, its last one, has
    the size, the others have orthonormal rows. At d = 480 the norm of ΔW / s is 1.1 for r = 8 and
    6.0 for r = 64. That is computed when the adapter is attached, not when one is read.

    With "direct" each core is uniform with a norm of 1 in every layer, as the later programs draw
    them: at d = 480 the norm of ΔW / s is 0.0055 for r = 8 and 0.0002 for r = 64.

    DISCREPANCY: the authors' program sets the global seed to 42 for each matrix, so that all start
    with the same ΔW; here each one draws for itself. The paper says Gaussian where the program's
    Kaiming initialization is uniform; the program is followed.

    Attributes:
        g1_query, ...: cores over the modes of i, the fastest first, and then those of o, mirrored,
            the slowest first.
    """

    def __init__(self, shape: AttentionShape, config: AdapterConfig) -> None:
        super().__init__(shape, config)
        for target in self.targets:
            fan_in, fan_out = shape.fan_in(target), shape.fan_out(target)
            modes = train_modes(fan_in, fan_out)
            cores = random_cores(shape.layers, modes, config.rank, 1.0)
            if config.init == "direct":
                shapes = core_shapes(modes, config.rank)
                cores = [_of_norm_one(uniform(1.0, shape.layers, *size)) for size in shapes]
            elif config.init == "unit":
                middle = cores[len(mode_sizes(fan_in)) - 1].shape[-1]
                cores[0] *= (middle / (3 * fan_in)) ** 0.5
                cores[-1].zero_()
            for i, core in enumerate(cores, start=1):
                self.set_factor(f"g{i}", target, core)

    @torch.no_grad()
    def settle(self, lm: AdaptedModel, *, fresh: bool) -> None:
        """See `Adapter`: the start of the paper."""
        if not fresh or self.config.init != "paper":
            return
        for layer, target in self.matrices():
            fan_in, fan_out = self.shape.fan_in(target), self.shape.fan_out(target)
            weight = uniform((2 / (3 * fan_in)) ** 0.5, fan_out, fan_in).double()
            for i, core in enumerate(train_of(weight, self.config.rank), start=1):
                self.get_parameter(f"g{i}_{target}")[layer] = core

    def useful_ranks(self) -> dict[str, int]:
        """See `Adapter`: the widest bond that a train of full rank has."""
        fans = [(self.shape.fan_in(target), self.shape.fan_out(target)) for target in self.targets]
        return {"rank": max(max(bonds(train_modes(*fan), fan[0] * fan[1])) for fan in fans)}

    def rank_warnings(self) -> list[str]:
        """See `Adapter`: bonds are cut, but the scale is that of the configured rank."""
        scaling, rank = self.config.scaling, self.config.rank
        note = "" if scaling == "constant" else f"; r in {scaling} is still {rank}"
        return [line + note for line in super().rank_warnings()]

    def factors(self) -> dict[Target, Pair]:
        """See `LowRankAdapter`."""
        assert self.scale is not None
        pairs = {}
        for target in self.targets:
            cut = len(mode_sizes(self.shape.fan_in(target)))
            count = cut + len(mode_sizes(self.shape.fan_out(target)))
            cores = [self.factor(f"g{i}", target) for i in range(1, count + 1)]
            a, g = contract(cores[:cut], fastest_first=True), contract(cores[cut:])
            pairs[target] = Pair(a.squeeze(1), self.scale * g.squeeze(3))
        return pairs


def train_modes(fan_in: int, fan_out: int) -> tuple[int, ...]:
    """Modes of the inputs, the fastest first, and then of the outputs, the slowest first."""
    return mode_sizes(fan_in) + mode_sizes(fan_out)[::-1]


def train_of(weight: Float[Tensor, "o i"], rank: int | None) -> list[Float[Tensor, "_ _ _"]]:
    """The cores of ΔW / s (float64) by TT-SVD from the last one to the first.

    Bonds are cut to the rank; None keeps ΔW as it is.
    """
    fan_out, fan_in = weight.shape
    digits = weight.reshape(*mode_sizes(fan_out)[::-1], fan_in)
    last = digits.ndim - 1
    backwards = digits.permute(*reversed(range(last)), last)
    cores = tt_svd(backwards.flatten(), train_modes(fan_in, fan_out)[::-1], rank)
    return [core.transpose(0, 2) for core in reversed(cores)]


def _of_norm_one(cores: Float[Tensor, "l p k q"]) -> Float[Tensor, "l p k q"]:
    return cores / cores.flatten(1).norm(dim=1)[:, None, None, None]
