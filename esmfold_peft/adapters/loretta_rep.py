"""LoReTTA-rep: LoRA whose factors are tensor trains (Yang et al. 2024, arXiv 2402.11417).

ΔW = s · B · A for each layer and matrix, A (r, i) and B (o, r) each a train with bonds of
`tt_rank`. The trains are contracted to A and B once in a forward pass.
"""

from jaxtyping import Float
from torch import Tensor

from esmfold_peft.adapters.base import Adapter, AttentionShape
from esmfold_peft.adapters.low_rank import LowRankAdapter, Pair
from esmfold_peft.adapters.tensor_train import bonds, contract, mode_sizes, random_cores
from esmfold_peft.config import AdapterConfig, Target


class LoReTTARep(LowRankAdapter):
    """Two trains for every layer l and adapted matrix, i to o.

    Attributes:
        a0_query, ...: cores of A, those of i's modes and then one of r; A starts with normal
            entries of LoRA's standard deviation 1/√(3i).
        b0_query, ...: cores of B, the mirror image. The last one starts at zero, so that ΔW does.
            With init "paper" none does, as in the authors' code, and A and B start with entries of
            standard deviation 1/√(i + r) and 1/√(r + o).
    """

    def __init__(self, shape: AttentionShape, config: AdapterConfig) -> None:
        super().__init__(shape, config)
        for target in self.targets:
            set_trains(self, target, shape.fan_in(target), shape.fan_out(target))

    def useful_ranks(self) -> dict[str, int]:
        """See `Adapter`: the bonds; as trains bound A and B, a wider product can reach more."""
        fans = [fan(t) for fan in (self.shape.fan_in, self.shape.fan_out) for t in self.targets]
        return {"tt_rank": max(longest_bond(fan, self.config.rank) for fan in fans)}

    def factors(self) -> dict[Target, Pair]:
        """See `LowRankAdapter`."""
        assert self.scale is not None
        pairs = {}
        for target in self.targets:
            a, b = trains(self, target, self.shape.fan_in(target), self.shape.fan_out(target))
            pairs[target] = Pair(a, self.scale * b)
        return pairs


def longest_bond(fan: int, rank: int) -> int:
    """The widest bond that a train of a matrix (fan, rank) can use."""
    return max(bonds((*mode_sizes(fan), rank), fan * rank))


def set_trains(adapter: Adapter, target: Target, fan_in: int, fan_out: int) -> None:
    """Registers the cores of two trains, (fan_in, r) and (r, fan_out); rank 1 has no core for r."""
    config, layers = adapter.config, adapter.shape.layers
    rank, paper = config.rank, config.init == "paper"
    middle = (rank,) if rank > 1 else ()
    std_a = (fan_in + rank) ** -0.5 if paper else (3 * fan_in) ** -0.5
    std_b = (fan_out + rank) ** -0.5 if paper else 1.0
    a = random_cores(layers, mode_sizes(fan_in) + middle, config.tt_rank, std_a)
    b = random_cores(layers, middle + mode_sizes(fan_out)[::-1], config.tt_rank, std_b)
    if not paper:
        b[-1].zero_()
    for name, cores in (("a", a), ("b", b)):
        for i, core in enumerate(cores):
            adapter.set_factor(f"{name}{i}", target, core)


def trains(
    adapter: Adapter, target: Target, fan_in: int, fan_out: int
) -> tuple[Float[Tensor, "l i r"], Float[Tensor, "l r o"]]:
    """Both factors of a matrix in float32, contracted from what `set_trains` registered."""
    config, layers = adapter.config, adapter.shape.layers
    dense = []
    for name, fan in (("a", fan_in), ("b", fan_out)):
        count = len(mode_sizes(fan)) + (config.rank > 1)
        cores = [adapter.factor(f"{name}{i}", target) for i in range(count)]
        dense.append(contract(cores))
    return dense[0].reshape(layers, -1, config.rank), dense[1].reshape(layers, config.rank, -1)
