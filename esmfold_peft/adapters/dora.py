"""DoRA: LoRA with the length of every row of a weight trained by itself (Liu et al. 2024).

arXiv 2402.09353. W' = diag(m / ‖W + s·B·A‖) · (W + s·B·A), the norm of each row (an output's) taken
as a constant in the backward pass, as the authors do. The norm costs no product with W + s·B·A:

    ‖W + B·A‖² = ‖W‖² + 2 B · (A·Wᵀ) + B · (A·Aᵀ) · Bᵀ      row by row, s inside B,

where ‖W‖² is computed once and A·Wᵀ is the layer itself, applied to the r rows of A.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from esmfold_peft.adapters.base import (
    AdaptedModel,
    AttentionShape,
    Factors,
    Group,
    MergedPart,
    per_token,
    wide,
)
from esmfold_peft.adapters.lora import LoRA
from esmfold_peft.adapters.low_rank import add_product
from esmfold_peft.config import AdapterConfig

SHORTEST = 1e-3
"""Rows of W + ΔW shorter than this share of W's are taken to be as long; float32 resolves no less
in a difference of squares."""


class DoRA(LoRA):
    """LoRA's factors and a magnitude for every layer l and output o of an adapted matrix.

    It starts from the lengths that the rows have when it is attached: a language model is cast to
    another type before that.

    Attributes:
        a_query, b_query, ...: see `LoRA`.
        m_query, ...: the length of each row (l, o), that of W at the start.
        squares_query, ...: the squared length of W's rows (l, o), not saved.
    """

    def __init__(self, shape: AttentionShape, config: AdapterConfig) -> None:
        super().__init__(shape, config)
        for target in self.targets:
            ones = torch.ones(shape.layers, shape.fan_out(target))
            self.set_factor("m", target, ones)
            self.register_buffer(f"squares_{target}", ones.clone(), persistent=False)

    @torch.no_grad()
    def settle(self, lm: AdaptedModel, *, fresh: bool) -> None:
        """See `Adapter`: the lengths of the rows of W."""
        for target in self.targets:
            rows = (lm.weight(layer, target) for layer in range(self.shape.layers))
            squares = torch.stack([wide(row).square().sum(1) for row in rows])
            self.get_buffer(f"squares_{target}").copy_(squares)
            if fresh:
                self.get_parameter(f"m_{target}").copy_(squares.sqrt())

    def forward(self, dtype: torch.dtype) -> tuple[Factors, ...]:
        """See `Adapter`: LoRA's, and m and ‖W‖² (L, w) of the group in float32."""
        factors = zip(self.groups(), super().forward(dtype), strict=True)
        return tuple(
            (*own, *(self.side_by_side(name, group, 1.0) for name in ("m", "squares")))
            for group, own in factors
        )

    def change_output(
        self, group: Group, factors: Factors, x: Tensor, y: Tensor, matrices: nn.Module
    ) -> Tensor:
        """See `Adapter`: y + ΔWx + (gain - 1) · (y + ΔWx - bias), the bias left as it is."""
        a, g, magnitudes, squares = factors
        norms, bias = _row_norms(a, g, squares, matrices)
        # A matrix that is not adapted keeps its rows: its magnitude and square are both 1.
        change = (magnitudes / norms - 1).to(y.dtype)
        y = add_product(x, y, a, g, len(group)).flatten(1)
        y = y + per_token(change, len(y)) * (y - bias.to(y.dtype))
        return y.unflatten(-1, (len(group), -1))

    def merged(self, lm: AdaptedModel) -> Iterator[MergedPart]:
        """See `Adapter`."""
        for part in super().merged(lm):
            length = self.factor("m", part.target)[part.layer]
            gain = length / part.weight.norm(dim=1)
            yield MergedPart(part.layer, part.target, gain[:, None] * part.weight, part.bias)


@torch.no_grad()
def _row_norms(
    a: Float[Tensor, "*b i k"],
    g: Float[Tensor, "*b p r q"],
    squares: Float[Tensor, "*b w"],
    matrices: nn.Module,
) -> tuple[Float[Tensor, "*b w"], Float[Tensor, "w"]]:
    """The lengths of the rows of W + ΔW, and the biases, in float32; p = n (`LowRankAdapter`)."""
    n, r = g.shape[-3:-1]
    weight_type = next(matrices.parameters()).dtype
    with torch.autocast(a.device.type, enabled=False):
        rows = a.transpose(-1, -2).reshape(-1, a.shape[-2]).to(weight_type)
        # The last row is zero: its outputs are the biases.
        outputs = wide(matrices(torch.cat([rows, rows.new_zeros(1, rows.shape[1])])))
        products = (outputs[:-1] - outputs[-1]).unflatten(0, (*a.shape[:-2], n, r))
        products = products.unflatten(-1, (n, -1)).diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
        a, g = wide(a).unflatten(-1, (n, r)).movedim(-2, -3), wide(g)
        cross = (products * g).sum(-2)
        quadratic = ((a.transpose(-1, -2) @ a @ g) * g).sum(-2)
    squared = squares + (2 * cross + quadratic).flatten(-2)
    # Where ΔW all but cancels W the sum is rounding errors, and may be negative.
    return torch.maximum(squared, SHORTEST**2 * squares).sqrt(), outputs[-1]
