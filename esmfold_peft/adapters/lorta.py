"""LoRTA: all adapted matrices as one tensor of low rank (Hounie et al. 2024, arXiv 2410.04060).

The update of head h of matrix m in layer l is the paper's

    ΔW_lmh = s · A · diag(C_L[l] ∘ C_M[m] ∘ C_H[h]) · Bᵀ        (width d × head width d_h),

applied as X·ΔW to query, key and value and transposed to output: A always faces the residual
stream, B and the heads always face head space. Everything small, s included, is folded into one G
(r, d) for each layer and matrix; as A is shared, one product x·A serves query, key and value.

Each of the modes heads, matrices and layers can be dropped (Table 4 of the paper; TensLoRA, arXiv
2509.19391): then every matrix, or every layer, has a tensor of its own, and without heads B spans
the whole width. Without all three this is LoRA.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from esmfold_peft.adapters.base import ATTENTION, INPUTS, AttentionShape, Group, uniform, wide
from esmfold_peft.adapters.low_rank import LowRankAdapter, Pair
from esmfold_peft.config import AdapterConfig, Target
from esmfold_peft.errors import UserError

HEADS_ON_OUTPUT: dict[str, Group] = {"paper": INPUTS, "peft": (), "litgpt": ATTENTION}
"""Matrices whose heads are slices of their outputs, by orientation; the others' of their inputs.

The authors' two programs differ from their paper, and from each other.
"""


class LoRTA(LowRankAdapter):
    """Five factors, shared by all layers, heads and matrices.

    Without the mode layers all but c_l have a first dimension of layers; without matrices
    all but c_m one of adapted matrices (after that of layers), in the order of `targets`.

    Attributes:
        a: A (d, r), the residual stream's factor.
        b: B (d_h, r), the channels of a head, or of the width without heads; zero at the start.
        c_h: C_H (H, r), one row a head.
        c_l: C_L (L, r), one row a layer.
        c_m: C_M (M, r), one row for each adapted matrix, in the order of `targets`.
        weight: the weights of the components (r), with component_weights; 1 at the start.
    """

    allowed: ClassVar[Group] = ATTENTION

    def __init__(self, shape: AttentionShape, config: AdapterConfig) -> None:
        super().__init__(shape, config)
        rank, modes = config.rank, config.modes
        layers = () if "layers" in modes else (shape.layers,)
        matrices = () if "matrices" in modes else (len(self.targets),)
        lead = layers + matrices
        channels = shape.head_width if "heads" in modes else shape.width
        self.a = nn.Parameter(torch.empty(*lead, shape.width, rank))
        self.b = nn.Parameter(torch.zeros(*lead, channels, rank))
        if "heads" in modes:
            self.c_h = nn.Parameter(torch.empty(*lead, shape.heads, rank))
        if "layers" in modes:
            self.c_l = nn.Parameter(torch.empty(*matrices, shape.layers, rank))
        if "matrices" in modes:
            # DISCREPANCY: the authors' code always has four rows here; a row of a matrix that is
            # not adapted would never have a gradient.
            self.c_m = nn.Parameter(torch.empty(*layers, len(self.targets), rank))
        if config.component_weights:
            self.weight = nn.Parameter(torch.ones(*lead, rank))
        self._lead = (layers or (1,)) + (matrices or (1,))
        self.reset_parameters()

    @classmethod
    def check(cls, config: AdapterConfig) -> None:
        """See `Adapter`: a mode is named once."""
        super().check(config)
        for mode in config.modes:
            if config.modes.count(mode) > 1:
                raise UserError(f"adapter.modes: {mode} is named twice")

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws all factors but B and the components' weights.

        "unit": mode factors of random sign, A uniform in ±1/√d as in LoRA, so that the same scale
        suits every rank. "paper": the authors' Kaiming bounds, which see the rank as fan-in: ±1/√r
        for A and ±√(6/r) for the modes (their init_scale = 0).
        """
        modes = [p for name, p in self.named_parameters() if name.startswith("c_")]
        unit, rank = self.config.init == "unit", self.config.rank
        self.a.copy_(uniform((self.shape.width if unit else rank) ** -0.5, *self.a.shape))
        for mode in modes:
            if unit:
                mode.copy_(2.0 * torch.randint(0, 2, mode.shape) - 1.0)
            else:
                mode.copy_(uniform((6 / rank) ** 0.5, *mode.shape))

    def shares_input(self, group: Group) -> bool:
        """See `LowRankAdapter`: A is on the input's side and the same for all matrices."""
        return "matrices" in self.config.modes and all(map(self._heads_on_output, group))

    def factors(self) -> dict[Target, Pair]:
        """See `LowRankAdapter`: elementwise products only."""
        a, g = self._grid(self.a).transpose(2, 3), self._g()
        pairs = {}
        for m, target in enumerate(self.targets):
            stream, heads = a[:, m % a.shape[1]], g[:, m]
            if self._heads_on_output(target):
                pairs[target] = Pair(stream, heads)
            else:
                rows = stream.transpose(1, 2).expand(self.shape.layers, -1, -1)
                pairs[target] = Pair(heads.transpose(1, 2), rows)
        return pairs

    def _heads_on_output(self, target: Target) -> bool:
        return target in HEADS_ON_OUTPUT[self.config.orientation]

    def _grid(self, factor: Float[Tensor, "*lead n r"]) -> Float[Tensor, "_ _ r n"]:
        """A factor in float32 with dimensions of layers and matrices, of length 1 if shared."""
        rank = self.config.rank
        return wide(factor).reshape(*self._lead, -1, rank).transpose(2, 3)

    def _g(self) -> Float[Tensor, "l m r d"]:
        """G[l, m, :, h·d_h + j] = s · C_L[l] ∘ C_M[m] ∘ C_H[h] ∘ B[j] in float32."""
        assert self.scale is not None
        shape, rank = self.shape, self.config.rank
        c = self.scale * self.a.new_ones(shape.layers, len(self.targets), rank)
        if "layers" in self.config.modes:
            c = c * wide(self.c_l).reshape(-1, shape.layers, rank).transpose(0, 1)
        if "matrices" in self.config.modes:
            c = c * wide(self.c_m).reshape(-1, len(self.targets), rank)
        if self.config.component_weights:
            c = c * wide(self.weight).reshape(*self._lead, rank)
        b = self._grid(self.b)
        if "heads" not in self.config.modes:
            return c[..., None] * b
        return (c[..., None, None] * self._grid(self.c_h)[..., None] * b[..., None, :]).flatten(3)
