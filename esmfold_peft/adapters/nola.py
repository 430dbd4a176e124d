"""NOLA: LoRA whose factors are mixtures of frozen random ones (Koohpayegani et al. 2023).

arXiv 2310.02556. ΔW = s · B · A with A = A₀ + Σ a_i R_i / √k and B = Σ b_j S_j / √k; only the 2 k
coefficients of each matrix are trained. The bases are kept with the adapter, so that a file does
not depend on a random generator.

DISCREPANCY: the authors' code draws bases for every matrix; here all layers and matrices share
them, as LoRTA's equation 12 has it, and share A₀.
"""

from typing import ClassVar, cast

import torch
from torch import Tensor

from esmfold_peft.adapters.base import AttentionShape, uniform, wide
from esmfold_peft.adapters.low_rank import LowRankAdapter, Pair
from esmfold_peft.config import AdapterConfig, Target


class NOLA(LowRankAdapter):
    """Coefficients for every layer l and adapted matrix, i to o.

    Attributes:
        a_query, ...: a (l, k), zero at the start.
        b_query, ...: b (l, k), zero at the start.
        unit_a: √i · A₀ (widest i, r), frozen, uniform in ±1. A matrix takes its first rows and
            divides by its own √i: its A₀ starts as LoRA's A, whatever else is adapted.
        bases_a: R (k, widest i, r), frozen, uniform in ±1.
        bases_b: S (k, r, widest o), frozen, uniform in ±1.
    """

    may_stay_zero: ClassVar[tuple[str, ...]] = ("a",)

    def __init__(self, shape: AttentionShape, config: AdapterConfig) -> None:
        super().__init__(shape, config)
        rank, k = config.rank, config.bases
        widest_in = max(shape.fan_in(target) for target in self.targets)
        widest_out = max(shape.fan_out(target) for target in self.targets)
        self.register_buffer("unit_a", uniform(1.0, widest_in, rank))
        self.register_buffer("bases_a", uniform(1.0, k, widest_in, rank))
        self.register_buffer("bases_b", uniform(1.0, k, rank, widest_out))
        for target in self.targets:
            self.set_factor("a", target, torch.zeros(shape.layers, k))
            self.set_factor("b", target, torch.zeros(shape.layers, k))

    def useful_ranks(self) -> dict[str, int]:
        """See `Adapter`: with as many bases as a factor has numbers, the factor is arbitrary."""
        fans = [self.shape.fan_out(target) for target in self.targets]
        fans += [
            self.shape.fan_in(target)
            for target in self.targets
            if self.get_parameter(f"a_{target}").requires_grad
        ]
        return {"bases": self.config.rank * max(fans)}

    def factors(self) -> dict[Target, Pair]:
        """See `LowRankAdapter`."""
        assert self.scale is not None
        buffers = (self.unit_a, self.bases_a, self.bases_b)
        unit, bases_a, bases_b = (wide(cast(Tensor, buffer)) for buffer in buffers)
        share = self.config.bases**-0.5
        pairs = {}
        for target in self.targets:
            fan_in, fan_out = self.shape.fan_in(target), self.shape.fan_out(target)
            a = share * self.factor("a", target)
            b = self.scale * share * self.factor("b", target)
            pairs[target] = Pair(
                fan_in**-0.5 * unit[:fan_in] + torch.einsum("lk,kir->lir", a, bases_a[:, :fan_in]),
                torch.einsum("lk,kro->lro", b, bases_b[..., :fan_out]),
            )
        return pairs
