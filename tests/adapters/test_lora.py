"""LoRA's updates and start."""

import math

import pytest
import torch

from esmfold_peft.adapters.base import GROUPS, AttentionShape
from esmfold_peft.adapters.lora import LoRA
from esmfold_peft.config import AdapterConfig

SHAPE = AttentionShape(layers=3, width=40, heads=4)


@pytest.mark.parametrize(
    "targets", [("query", "key", "value", "output"), ("query", "value"), ("output",)]
)
def test_update_is_scaled_b_a(targets):
    torch.manual_seed(0)
    adapter = LoRA(SHAPE, AdapterConfig(kind="lora", rank=2, alpha=6.0, targets=targets))
    torch.nn.init.normal_(adapter.b)
    deltas = adapter.fold(torch.float32)
    x = torch.randn(2, 5, SHAPE.width)
    for layer in range(SHAPE.layers):
        for group in GROUPS:
            for target, y in zip(group, deltas(layer, group, x), strict=True):
                if target not in targets:
                    assert y is None
                    continue
                a = adapter.a[layer, targets.index(target)].double()
                b = adapter.b[layer, targets.index(target)].double()
                dense = 3.0 * b @ a
                torch.testing.assert_close(y.double(), x.double() @ dense.T, rtol=1e-5, atol=1e-5)
                ours = adapter.delta_weight(layer, target).double()
                torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-6)


def test_matrices_have_factors_of_their_own():
    adapter = LoRA(SHAPE, AdapterConfig(kind="lora", rank=2))
    torch.nn.init.normal_(adapter.b)
    weights = [adapter.delta_weight(layer, target) for layer, target in adapter.matrices()]
    stacked = torch.stack(weights).flatten(1)
    assert torch.linalg.matrix_rank(stacked) == 3 * SHAPE.layers


@pytest.mark.parametrize("init", ["unit", "paper"])
def test_start(init):
    torch.manual_seed(0)
    adapter = LoRA(SHAPE, AdapterConfig(kind="lora", rank=8, init=init))
    assert adapter.a.abs().max().item() == pytest.approx(1 / math.sqrt(40), rel=1e-2)
    assert adapter.a.std().item() == pytest.approx(1 / math.sqrt(120), rel=5e-2)
    assert not adapter.b.any()
