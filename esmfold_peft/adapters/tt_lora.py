"""TT-LoRA: every update is one tensor train (Anjum et al. 2024, arXiv 2408.01008).

ΔWᵀ = s · G₁ · ... · G₆ for each layer and matrix, the first cores over the modes of the inputs, the
last ones over those of the outputs. The bond between them has at most r channels: cut there, the
train is a product of two thin factors, and ΔW is never formed. The authors scale by alpha itself
(scaling "constant").
"""

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.low_rank import LowRankAdapter, Pair
from esmfold_peft.adapters.tensor_train import contract, mode_sizes, random_cores
from esmfold_peft.config import AdapterConfig, Target


class TTLoRA(LowRankAdapter):
    """One train with bonds of r for every layer l and adapted matrix, i to o.

    Attributes:
        g0_query, ...: cores over the modes of i and then, mirrored, those of o. The first ones
            start as LoRA's A would (entries of standard deviation 1/√(3i)), the last one at zero.
            With init "paper" each core is normal with a norm of 1 in every layer, as the authors
            start it, so that ΔW is not zero.
    """

    def __init__(self, shape: AttentionShape, config: AdapterConfig) -> None:
        super().__init__(shape, config)
        for target in self.targets:
            modes_in = mode_sizes(shape.fan_in(target))
            modes = modes_in + mode_sizes(shape.fan_out(target))[::-1]
            cores = random_cores(shape.layers, modes, config.rank, 1.0)
            if config.init == "paper":
                cores = [core / core.flatten(1).norm(dim=1)[:, None, None, None] for core in cores]
            else:
                middle = cores[len(modes_in) - 1].shape[-1]
                cores[0] *= (middle / (3 * shape.fan_in(target))) ** 0.5
                cores[-1].zero_()
            for i, core in enumerate(cores):
                self.set_factor(f"g{i}", target, core)

    def factors(self) -> dict[Target, Pair]:
        """See `LowRankAdapter`."""
        assert self.scale is not None
        pairs = {}
        for target in self.targets:
            cut = len(mode_sizes(self.shape.fan_in(target)))
            count = cut + len(mode_sizes(self.shape.fan_out(target)))
            cores = [self.factor(f"g{i}", target) for i in range(count)]
            a, g = contract(cores[:cut]), contract(cores[cut:])
            pairs[target] = Pair(a.squeeze(1), self.scale * g.squeeze(3))
        return pairs
