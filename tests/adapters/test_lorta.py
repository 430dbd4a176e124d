"""LoRTA's tensor, its orientation, its start and its cost."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from esmfold_peft.adapters.base import GROUPS, INPUTS, OUTPUT, AttentionShape
from esmfold_peft.adapters.lorta import LoRTA
from esmfold_peft.config import AdapterConfig

SHAPE = AttentionShape(layers=3, width=40, heads=4)
QKVP = ("query", "key", "value", "output")


def moved(**settings):
    """A LoRTA adapter with no zero factor."""
    torch.manual_seed(0)
    adapter = LoRTA(SHAPE, AdapterConfig(kind="lorta", **settings))
    with torch.no_grad():
        for factor in adapter.parameters():
            factor.copy_(torch.randn_like(factor))
    return adapter


def cp_entry(adapter, layer, matrix, head):
    """The paper's A · diag(C_H[h] ∘ C_L[l] ∘ C_M[m]) · Bᵀ as a sum of rank-one terms, float64."""
    a, b, c_h, c_l, c_m = (
        f.detach().double() for f in (adapter.a, adapter.b, adapter.c_h, adapter.c_l, adapter.c_m)
    )
    dense = torch.zeros(len(a), len(b), dtype=torch.float64)
    for k in range(a.shape[1]):
        coefficient = c_l[layer, k] * c_m[matrix, k] * c_h[head, k]
        for i in range(len(a)):
            for j in range(len(b)):
                dense[i, j] += coefficient * a[i, k] * b[j, k]
    return dense


def dense_update(adapter, layer, target):
    """ΔW as x is multiplied by it: X·ΔW_h side by side for Q, K, V; stacked ΔW_hᵀ for P."""
    matrix = adapter.targets.index(target)
    heads = [cp_entry(adapter, layer, matrix, head) for head in range(SHAPE.heads)]
    scale = adapter.config.alpha / adapter.config.rank
    if target == "output":
        return scale * torch.cat([head.T for head in heads], dim=0)
    return scale * torch.cat(heads, dim=1)


@pytest.mark.parametrize("targets", [QKVP, ("query", "value"), ("key", "output"), ("output",)])
def test_update_is_the_papers_tensor(targets):
    adapter = moved(rank=2, alpha=6.0, targets=targets)
    deltas = adapter.fold(torch.float32)
    x = torch.randn(2, 5, SHAPE.width)
    for layer in range(SHAPE.layers):
        for group in GROUPS:
            added = deltas(layer, group, x)
            for target, y in zip(group, added, strict=True):
                if target not in targets:
                    assert y is None
                    continue
                dense = dense_update(adapter, layer, target)
                torch.testing.assert_close(y.double(), x.double() @ dense, rtol=1e-5, atol=1e-4)
                ours = adapter.delta_weight(layer, target).double()
                torch.testing.assert_close(ours, dense.T, rtol=1e-5, atol=1e-5)


def head_slice(head):
    return slice(head * SHAPE.head_width, (head + 1) * SHAPE.head_width)


def test_a_silent_head_gets_no_update_of_its_queries_keys_and_values():
    # PEFT's fork of the authors puts heads on the input here, where this slice would change.
    adapter = moved(rank=2, targets=QKVP)
    with torch.no_grad():
        adapter.c_h[2] = 0
    x = torch.randn(5, SHAPE.width)
    for y in adapter.fold(torch.float32)(1, INPUTS, x):
        for head in range(SHAPE.heads):
            assert bool(y[:, head_slice(head)].any()) == (head != 2)


def test_a_silent_head_is_not_read_by_the_output_matrix():
    # The authors' lit-gpt code puts heads on the output of P, and reads all of its input.
    adapter = moved(rank=2, targets=QKVP)
    with torch.no_grad():
        adapter.c_h[2] = 0
    deltas = adapter.fold(torch.float32)
    x = torch.randn(5, SHAPE.width)
    (reference,) = deltas(1, OUTPUT, x)
    assert reference.all()
    for head in range(SHAPE.heads):
        other = x.clone()
        other[:, head_slice(head)] += 1
        assert torch.equal(deltas(1, OUTPUT, other)[0], reference) == (head == 2)


def test_all_layers_read_and_write_one_subspace_of_the_residual_stream():
    adapter = moved(rank=2, targets=QKVP)
    orthogonal = torch.linalg.qr(torch.cat([adapter.a.detach(), torch.randn(SHAPE.width, 1)], 1))
    unseen = orthogonal.Q[:, 2]
    for layer, target in adapter.matrices():
        weight = adapter.delta_weight(layer, target).detach()
        silent = unseen @ weight if target == "output" else weight @ unseen
        assert silent.norm() < 1e-5 * weight.norm()
        assert torch.linalg.matrix_rank(weight, rtol=1e-5) == 2


def test_unit_start():
    torch.manual_seed(0)
    adapter = LoRTA(AttentionShape(200, 400, 200), AdapterConfig(rank=8, init="unit"))
    for mode in (adapter.c_h, adapter.c_l):
        assert torch.equal(mode.abs(), torch.ones_like(mode))
        assert abs(mode.mean().item()) < 0.1
    assert adapter.a.abs().max().item() == pytest.approx(1 / math.sqrt(400), rel=1e-2)
    assert not adapter.b.any()


def test_paper_start():
    torch.manual_seed(0)
    adapter = LoRTA(AttentionShape(200, 400, 200), AdapterConfig(rank=8, init="paper"))
    for mode in (adapter.c_h, adapter.c_l):
        assert mode.abs().max().item() == pytest.approx(math.sqrt(6 / 8), rel=1e-2)
        assert mode.std().item() == pytest.approx(math.sqrt(2 / 8), rel=5e-2)
    assert adapter.a.abs().max().item() == pytest.approx(1 / math.sqrt(8), rel=1e-2)
    assert adapter.a.std().item() == pytest.approx(1 / math.sqrt(24), rel=5e-2)
    assert not adapter.b.any()


class Products(TorchDispatchMode):
    """Counts the matrix products that run inside it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm")
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(
    ("kind", "targets", "added"),
    [
        ("lorta", ("query", "key", "value"), 2),
        ("lorta", QKVP, 4),
        ("lora", ("query", "key", "value"), 4),
        ("lora", QKVP, 6),
    ],
)
def test_matrix_products_of_a_layer(make_lm, chains, kind, targets, added):
    # Six linear layers without an adapter. LoRTA: x·A once for Q, K, V together, one product with
    # their factors; two for P. LoRA: the stacked A, then one B each.
    lm = make_lm(kind, rank=2, targets=targets)
    with torch.no_grad(), Products() as products:
        lm(*chains)
    assert products.count == SHAPE.layers * (6 + added)


def test_folding_is_float32_under_autocast():
    adapter = moved(rank=2, targets=QKVP)
    plain = adapter.fold(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = adapter.fold(torch.bfloat16)
    for group in GROUPS:
        for one, two in zip(plain.factors[group], cast.factors[group], strict=True):
            assert torch.equal(one, two)


def test_gradients_equal_those_of_the_dense_update():
    adapter = moved(rank=2, alpha=6.0, targets=QKVP)
    x = torch.randn(7, SHAPE.width)
    deltas = adapter.fold(torch.float32)
    folded = [deltas(2, INPUTS, x)[1], deltas(0, OUTPUT, x)[0]]
    dense = [x @ adapter.delta_weight(2, "key").T, x @ adapter.delta_weight(0, "output").T]
    factors = list(adapter.parameters())
    loss = [sum(y.square().sum() for y in outputs) for outputs in (folded, dense)]
    ours, reference = (torch.autograd.grad(value, factors) for value in loss)
    for one, two in zip(ours, reference, strict=True):
        assert (one - two).norm() <= 1e-5 * two.norm()
