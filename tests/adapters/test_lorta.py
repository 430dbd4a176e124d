"""LoRTA's tensor, its modes, its orientation, and its cost."""

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from esmfold_peft.adapters.base import GROUPS, INPUTS, OUTPUT, AttentionShape
from esmfold_peft.adapters.lorta import LoRTA
from esmfold_peft.config import AdapterConfig

SHAPE = AttentionShape(layers=3, width=24, heads=4)
QKVP = ("query", "key", "value", "output")
MODES = ("heads", "matrices", "layers")
SUBSETS = [s for n in range(4) for s in itertools.combinations(MODES, n)]


def moved(**settings):
    """A LoRTA adapter in float64 with no zero factor."""
    torch.manual_seed(0)
    adapter = LoRTA(SHAPE, AdapterConfig(kind="lorta", **settings)).double()
    with torch.no_grad():
        for factor in adapter.parameters():
            factor.copy_(torch.randn_like(factor))
    return adapter


def factor_of(adapter, name, layer, matrix):
    """The rows of one factor that a layer and a matrix use, (rows, rank)."""
    factor, modes = adapter.get_parameter(name).detach(), adapter.config.modes
    if name != "c_l" and "layers" not in modes:
        factor = factor[layer]
    if name != "c_m" and "matrices" not in modes:
        factor = factor[matrix]
    return factor


def cp_tensor(adapter, layer, target):
    """One matrix's slice of the tensor, entry by entry as a sum of r products: (d, H, d_h)."""
    matrix, modes, rank = adapter.targets.index(target), adapter.config.modes, adapter.config.rank
    a, b = (factor_of(adapter, name, layer, matrix) for name in "ab")
    entries = torch.zeros(SHAPE.width, SHAPE.heads, SHAPE.head_width, dtype=torch.float64)
    for k in range(rank):
        shared = 1.0
        if "layers" in modes:
            shared = shared * factor_of(adapter, "c_l", layer, matrix)[layer, k]
        if "matrices" in modes:
            shared = shared * factor_of(adapter, "c_m", layer, matrix)[matrix, k]
        if adapter.config.component_weights:
            weight = adapter.weight.detach()
            weight = weight if "layers" in modes else weight[layer]
            shared = shared * (weight if "matrices" in modes else weight[matrix])[k]
        for i, h, j in itertools.product(*map(range, entries.shape)):
            if "heads" in modes:
                other = b[j, k] * factor_of(adapter, "c_h", layer, matrix)[h, k]
            else:
                other = b[h * SHAPE.head_width + j, k]
            entries[i, h, j] += shared * a[i, k] * other
    return adapter.config.alpha / rank * entries


def dense_update(adapter, layer, target):
    """ΔW as x is multiplied by it: X·ΔW_h side by side for Q, K, V; ΔW_hᵀ stacked for P."""
    heads = cp_tensor(adapter, layer, target).flatten(1)
    on_output = {"paper": target != "output", "peft": False, "litgpt": True}
    return heads if on_output[adapter.config.orientation] else heads.T


def outputs(adapter, layer, x):
    """What the adapter adds to each matrix's outputs."""
    folded = adapter.fold(x.dtype)
    found = {}
    for group in GROUPS[:2]:
        blank = x.new_zeros(len(x), len(group) * SHAPE.width)
        result = folded.output(layer, group, x, blank, torch.nn.Identity())
        found |= dict(zip(group, result.unbind(1), strict=True))
    return found


def assert_is_the_tensor(adapter):
    x = torch.randn(5, SHAPE.width, dtype=torch.float64)
    for layer in range(SHAPE.layers):
        added = outputs(adapter, layer, x)
        for target in QKVP:
            if target not in adapter.targets:
                assert not added[target].any()
                continue
            dense = dense_update(adapter, layer, target)
            torch.testing.assert_close(added[target], x @ dense, rtol=1e-10, atol=1e-10)
            ours = adapter.delta_weight(layer, target)
            torch.testing.assert_close(ours, dense.T, rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("targets", [QKVP, ("query", "value"), ("key", "output"), ("output",)])
def test_update_is_the_papers_tensor(targets):
    assert_is_the_tensor(moved(rank=2, alpha=6.0, targets=targets))


@torch.no_grad()
@pytest.mark.parametrize("modes", SUBSETS, ids="+".join)
@pytest.mark.parametrize("weights", [False, True], ids=["plain", "lambda"])
def test_update_with_any_of_the_modes(modes, weights):
    settings = {"rank": 2, "targets": QKVP, "modes": modes, "component_weights": weights}
    assert_is_the_tensor(moved(**settings))


@torch.no_grad()
@pytest.mark.parametrize("orientation", ["peft", "litgpt"])
def test_update_in_the_authors_orientations(orientation):
    assert_is_the_tensor(moved(rank=2, targets=QKVP, orientation=orientation))


@pytest.mark.parametrize("modes", SUBSETS, ids="+".join)
def test_parameters_of_every_choice_of_modes(modes):
    # Table 4 of the paper, per tensor: d + d_h + H (or 2 d without heads), and one row a layer and
    # a matrix; times the number of tensors.
    adapter = LoRTA(SHAPE, AdapterConfig(rank=5, targets=QKVP, modes=modes))
    own = 24 + (6 + 4 if "heads" in modes else 24)
    tensors = (1 if "matrices" in modes else 4) * (1 if "layers" in modes else 3)
    rows = 0
    if "layers" in modes:
        rows += 3 * (1 if "matrices" in modes else 4)
    if "matrices" in modes:
        rows += 4 * (1 if "layers" in modes else 3)
    count = sum(p.numel() for p in adapter.parameters())
    assert count == 5 * (tensors * own + rows)


@torch.no_grad()
def test_without_modes_it_is_lora(make_lm, chains):
    lm, other = make_lm("lorta", rank=2, alpha=1.0, targets=QKVP, modes=()), make_lm("none")
    for layer, target in lm.adapter.matrices():
        m = QKVP.index(target)
        a, b = lm.adapter.a[layer, m], lm.adapter.b[layer, m]
        # A faces the residual stream, which the output matrix writes and the others read.
        product = a @ b.T if target == "output" else b @ a.T
        other.weight(layer, target).add_(0.5 * product)
    mask = chains[1]
    reference = other(*chains)[mask]
    assert (lm(*chains)[mask] - reference).norm() < 1e-5 * reference.norm()


def head_slice(head):
    return slice(head * SHAPE.head_width, (head + 1) * SHAPE.head_width)


@torch.no_grad()
def test_a_silent_head_gets_no_update_of_its_queries_keys_and_values():
    # With heads on the input, as in the authors' fork of PEFT, this slice would change.
    adapter, other = (moved(rank=2, targets=QKVP, orientation=o) for o in ("paper", "peft"))
    x = torch.randn(5, SHAPE.width, dtype=torch.float64)
    for one in (adapter, other):
        one.c_h[2] = 0
    ours, theirs = outputs(adapter, 1, x), outputs(other, 1, x)
    for target in INPUTS:
        for head in range(SHAPE.heads):
            assert bool(ours[target][:, head_slice(head)].any()) == (head != 2)
            assert theirs[target][:, head_slice(head)].any()


@torch.no_grad()
def test_a_silent_head_is_not_read_by_the_output_matrix():
    # With heads on the output, as in the authors' lit-gpt, all of the input would be read.
    x = torch.randn(5, SHAPE.width, dtype=torch.float64)
    for orientation in ("paper", "litgpt"):
        adapter = moved(rank=2, targets=QKVP, orientation=orientation)
        adapter.c_h[2] = 0
        (target,) = OUTPUT
        reference = outputs(adapter, 1, x)[target]
        for head in range(SHAPE.heads):
            other = x.clone()
            other[:, head_slice(head)] += 1
            same = torch.equal(outputs(adapter, 1, other)[target], reference)
            assert same == (orientation == "paper" and head == 2)


@torch.no_grad()
def test_all_layers_read_and_write_one_subspace_of_the_residual_stream():
    adapter = moved(rank=2, targets=QKVP)
    extra = torch.randn(SHAPE.width, 1, dtype=torch.float64)
    orthogonal = torch.linalg.qr(torch.cat([adapter.a.detach(), extra], 1))
    unseen = orthogonal.Q[:, 2]
    for layer, target in adapter.matrices():
        weight = adapter.delta_weight(layer, target)
        silent = unseen @ weight if target == "output" else weight @ unseen
        assert silent.norm() < 1e-12 * weight.norm()
        assert torch.linalg.matrix_rank(weight, rtol=1e-9) == 2


class Products(TorchDispatchMode):
    """Counts the matrix products that run inside it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        names = ("mm", "addmm", "addmm_", "bmm", "baddbmm")
        self.count += func._overloadpacket.__name__ in names
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(
    ("kind", "targets", "added"),
    [
        ("lorta", ("query", "key", "value"), 2),
        ("lorta", QKVP, 4),
        ("lora", ("query", "key", "value"), 2),
        ("lora", QKVP, 4),
    ],
)
def test_matrix_products_of_a_layer(make_lm, chains, kind, targets, added):
    # Four linear layers without an adapter. Query, key and value share x·a, and one product with
    # their second factors (three in a batch for LoRA); output has two of its own.
    lm = make_lm(kind, rank=2, targets=targets)
    with torch.no_grad(), Products() as products:
        lm(*chains)
    assert products.count == 3 * (4 + added)


def saved_numbers(lm, chains):
    """Numbers that the backward pass keeps, those of the weights left out."""
    weights = {p.untyped_storage().data_ptr() for _, p in lm.base_parameters()}
    kept = {}

    def pack(tensor):
        key = tensor.untyped_storage().data_ptr()
        if key not in weights:
            kept[key] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = lm(*chains)
    assert hidden.requires_grad
    return sum(kept.values())


def test_a_frozen_a_keeps_r_numbers_a_token_instead_of_d(make_lm):
    aatype = torch.randint(0, 20, (2, 30))
    chains = aatype, torch.ones_like(aatype, dtype=torch.bool)
    trained, frozen = (make_lm("lorta", rank=2, freeze=f) for f in ((), ("a",)))
    tokens = 2 * 32
    spared = saved_numbers(trained, chains) - saved_numbers(frozen, chains)
    # The input of query, key and value in each layer; ΔA is what it is for.
    assert spared == pytest.approx(3 * tokens * 40, rel=0.02)
