"""Each method's update against its formula, written out with loops and dense matrices, float64.

And the numbers that it trains. A new method has an entry in both tables.
"""

import itertools
from math import prod

import pytest
import torch
from torch.func import functional_call

from esmfold_peft.adapters.base import GROUPS, INPUTS, SIZES, Adaptation, AttentionShape
from esmfold_peft.adapters.insert import ADAPTERS, build_adapter, count, insert_adapter
from esmfold_peft.adapters.tensor_train import mode_sizes
from esmfold_peft.config import AdapterConfig
from esmfold_peft.model.language_model import LanguageModel

SHAPE = AttentionShape(layers=2, width=24, heads=2)
SHAPE_40 = AttentionShape(layers=3, width=40, heads=4)
ATTENTION = ("query", "key", "value", "output")
ALL = (*ATTENTION, "fc1", "fc2")


def moved(kind, **settings):
    """An adapter in float64 with no number at its start."""
    torch.manual_seed(0)
    adapter = build_adapter(SHAPE, AdapterConfig(kind=kind, **settings)).double()
    with torch.no_grad():
        for tensor in itertools.chain(adapter.parameters(), adapter.buffers()):
            tensor.copy_(torch.randn_like(tensor))
    return adapter


def part(adapter, name, target):
    return adapter.get_parameter(f"{name}_{target}").detach()


def train(cores, layer):
    """Entry by entry, the product of the cores' slices at the entry's mode indices."""
    sizes = [core.shape[2] for core in cores]
    entries = []
    for indices in itertools.product(*map(range, sizes)):
        value = torch.ones(1, 1, dtype=torch.float64)
        for core, index in zip(cores, indices, strict=True):
            value = value @ core[layer, :, index, :]
        entries.append(value.item())
    return torch.tensor(entries, dtype=torch.float64)


def cores_of(adapter, name, target):
    found = {n: p for n, p in adapter.named_parameters() if n.endswith(f"_{target}")}
    picked = sorted(n for n in found if n[0] == name and n[1].isdigit())
    return [found[n].detach() for n in picked]


def lora(adapter, layer, target):
    return part(adapter, "b", target)[layer] @ part(adapter, "a", target)[layer]


def shared(adapter, layer, target, u, v, core):
    """FacT's and LoTR's update of x: U · Σ · V, blocks of a wide matrix one after the other."""
    counts = {t: 4 if t in ("fc1", "fc2") else 1 for t in adapter.targets}
    first = sum(counts[t] for t in adapter.targets[: adapter.targets.index(target)])
    blocks = [u @ core(layer, first + i) @ v for i in range(counts[target])]
    return torch.cat(blocks, dim=1 if target == "fc1" else 0).T


def lotr(adapter, layer, target):
    outer = adapter.rhs.detach(), adapter.lhs.detach()
    return shared(adapter, layer, target, *outer, lambda i, b: adapter.mid[i, b].detach())


def fact_tt(adapter, layer, target):
    outer = adapter.u.detach(), adapter.v.detach()
    return shared(adapter, layer, target, *outer, lambda i, b: adapter.sigma[i, b].detach())


def fact_tk(adapter, layer, target):
    def core(i, b):
        c, p = adapter.core.detach(), adapter.p.detach()
        return sum(p[i, b, k] * c[:, :, k] for k in range(len(c)))

    return shared(adapter, layer, target, adapter.u.detach(), adapter.v.detach(), core)


def loretta_rep(adapter, layer, target):
    rank = adapter.config.rank
    a = train(cores_of(adapter, "a", target), layer).view(-1, rank)
    b = train(cores_of(adapter, "b", target), layer).view(rank, -1)
    return (a @ b).T


def tt_lora(adapter, layer, target):
    cores, fan_in = cores_of(adapter, "g", target), SHAPE.fan_in(target)
    sizes = [core.shape[2] for core in cores]
    cut = next(n for n in range(len(sizes)) if prod(sizes[:n]) == fan_in)
    digits = train(cores, layer).view(*sizes[:cut], -1)
    # The first core's digit is the fastest of an input's.
    return digits.permute(*reversed(range(cut)), cut).reshape(fan_in, -1).T


def vera(adapter, layer, target):
    a = adapter.projection_a[:, : SHAPE.fan_in(target)]
    b = adapter.projection_b[: SHAPE.fan_out(target)]
    left, right = part(adapter, "b", target)[layer], part(adapter, "d", target)[layer]
    return torch.diag(left) @ b @ torch.diag(right) @ a


def nola(adapter, layer, target):
    fan_in, fan_out, k = SHAPE.fan_in(target), SHAPE.fan_out(target), adapter.config.bases
    a, b = part(adapter, "a", target)[layer], part(adapter, "b", target)[layer]
    left = adapter.unit_a[:fan_in] / fan_in**0.5
    right = torch.zeros(adapter.config.rank, fan_out, dtype=torch.float64)
    for i in range(k):
        left += a[i] * adapter.bases_a[i, :fan_in] / k**0.5
        right += b[i] * adapter.bases_b[i, :, :fan_out] / k**0.5
    return (left @ right).T


UPDATES = {
    "lora": (lora, ALL, {}),
    "lora_fa": (lora, ALL, {}),
    "lotr": (lotr, ATTENTION, {}),
    "fact_tt": (fact_tt, ALL, {}),
    "fact_tk": (fact_tk, ALL, {}),
    "loretta_rep": (loretta_rep, ALL, {"tt_rank": 2}),
    "tt_lora": (tt_lora, ALL, {}),
    "vera": (vera, ALL, {}),
    "nola": (nola, ALL, {"bases": 5}),
}


def outputs(adapter, layer, x):
    """What an adapter adds for one input of each group, by target."""
    folded = adapter.fold(torch.float64)
    found = {}
    for group in GROUPS:
        own = x[:, : SHAPE.fan_in(group[0])]
        blank = torch.zeros(len(x), sum(map(SHAPE.fan_out, group)), dtype=torch.float64)
        result = folded.output(layer, group, own, blank, torch.nn.Identity())
        found |= dict(zip(group, result.unbind(1), strict=True))
    return found


@pytest.mark.parametrize(("kind", "rank"), [(k, r) for k in UPDATES for r in (1, 3)])
@pytest.mark.parametrize("few", [False, True], ids=["all", "few"])
@torch.no_grad()
def test_update_is_the_methods_formula(kind, rank, few):
    formula, targets, settings = UPDATES[kind]
    targets = tuple(t for t in targets if t in ("value", "fc2")) if few else targets
    adapter = moved(kind, rank=rank, alpha=6.0, targets=targets, **settings)
    scale = adapter.scale if adapter.scale is not None else 1.0
    x = torch.randn(5, 4 * SHAPE.width, dtype=torch.float64)
    for layer in range(SHAPE.layers):
        added = outputs(adapter, layer, x)
        for target, y in added.items():
            if target not in targets:
                assert not y.any(), target
                continue
            dense = scale * formula(adapter, layer, target)
            assert dense.norm() > 0.1
            own = x[:, : SHAPE.fan_in(target)]
            torch.testing.assert_close(y, own @ dense.T, rtol=1e-9, atol=1e-9)
            ours = adapter.delta_weight(layer, target)
            torch.testing.assert_close(ours, dense, rtol=1e-9, atol=1e-9)


def test_every_low_rank_method_has_a_formula_here():
    linear = {kind for kind, method in ADAPTERS.items() if hasattr(method, "factors")}
    # LoRTA's is in test_lorta.py, DoRA's below.
    assert linear == {*UPDATES, "lorta", "dora"}


def numbers_of_train(modes, rank):
    """Numbers of a tensor train: cores between bonds that no side of a cut outgrows."""
    bonds = [
        min(rank, prod(modes[:cut]), prod(modes[cut:])) if 0 < cut < len(modes) else 1
        for cut in range(len(modes) + 1)
    ]
    return sum(a * k * b for a, k, b in zip(bonds, modes, bonds[1:], strict=False))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("r", [1, 8, 64])
@pytest.mark.parametrize("targets", [ATTENTION, ("query", "value")])
def test_numbers_that_train(name, r, targets):
    shape, m = SIZES[name], len(targets)
    n, d, h = shape.layers, shape.width, shape.heads
    k, middle = mode_sizes(d), (r,) if r > 1 else ()
    pair = 2 * numbers_of_train((*k, *middle), 5)
    assert prod(k) == d
    expected = {
        "lora": 2 * m * n * d * r,
        "lora_fa": m * n * d * r,
        "dora": 2 * m * n * d * r + m * n * d,
        "lorta": (d + d // h + h + n + m) * r,
        "lotr": m * n * r**2 + 2 * d * r,
        "fact_tt": m * n * r**2 + 2 * d * r,
        "fact_tk": (2 * d + m * n) * r + r**3,
        "loretta_rep": m * n * pair,
        "loretta_adp": m * n * (pair + r + d),
        "tt_lora": m * n * numbers_of_train((*k, *k[::-1]), r),
        "vera": m * n * (d + r),
        "nola": 2 * 64 * m * n,
        "ia3": m * n * d,
        "bitfit": m * n * d,
    }
    configs = {kind: AdapterConfig(kind=kind, rank=r, targets=targets) for kind in ADAPTERS}
    assert {kind: count(shape, config).trainable for kind, config in configs.items()} == expected


@torch.no_grad()
def test_dora_turns_rows_and_sets_their_length(make_lm):
    lm = make_lm("dora", rank=2, alpha=6.0, targets=ALL)
    for item in lm.adapter.merged(lm):
        delta = 3.0 * lora(lm.adapter, item.layer, item.target)
        turned = lm.weight(item.layer, item.target) + delta
        length = part(lm.adapter, "m", item.target)[item.layer]
        expected = turned / turned.norm(dim=1, keepdim=True) * length[:, None]
        torch.testing.assert_close(item.weight, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(item.bias, lm.bias(item.layer, item.target))
        assert (item.weight.norm(dim=1) - length.abs()).abs().max() < 1e-5


@pytest.mark.parametrize("share", [1e-2, 1e-4, 0.0])
@torch.no_grad()
def test_dora_stays_finite_where_its_update_cancels_the_weight(make_lm, chains, share):
    lm = make_lm("dora", trained=False, rank=40, alpha=40.0, targets=("query",))
    for layer in range(3):
        left, sizes, right = torch.linalg.svd(lm.weight(layer, "query"))
        lm.adapter.b_query[layer] = (share - 1) * left * sizes
        lm.adapter.a_query[layer] = right
    assert lm(*chains).isfinite().all()


@torch.no_grad()
def test_dora_starts_from_a_model_that_was_cast_before(chains):
    plain = LanguageModel.random(SHAPE_40, seed=3).bfloat16()
    reference = plain(*chains)
    insert_adapter(plain, AdapterConfig(kind="dora", rank=2))
    assert torch.equal(plain(*chains), reference)


@torch.no_grad()
def test_loretta_adp_is_a_bottleneck_of_two_trains_behind_a_matrix():
    adapter = moved("loretta_adp", rank=3, alpha=6.0, tt_rank=2, targets=("output", "fc2"))
    width = SHAPE.width
    y = torch.randn(5, width, dtype=torch.float64)
    for layer, target in adapter.matrices():
        down = train(cores_of(adapter, "a", target), layer).view(width, 3)
        up = train(cores_of(adapter, "b", target), layer).view(3, width)
        inner = torch.tanh(y @ down + part(adapter, "down", target)[layer])
        expected = y + 2.0 * (inner @ up + part(adapter, "up", target)[layer])
        folded = adapter.fold(torch.float64)
        result = folded.output(layer, (target,), y, y.clone(), torch.nn.Identity())
        torch.testing.assert_close(result[:, 0], expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_ia3_multiplies_outputs_and_the_inputs_of_fc2():
    adapter = moved("ia3", targets=("key", "value", "fc2"))
    folded = adapter.fold(torch.float64)
    x = torch.randn(5, 4 * SHAPE.width, dtype=torch.float64)
    y = torch.randn(5, 3 * SHAPE.width, dtype=torch.float64)
    for layer in range(SHAPE.layers):
        q, k, v = y.unflatten(1, (3, -1)).unbind(1)
        result = folded.output(layer, INPUTS, x, y, torch.nn.Identity())
        expected = [q, k * part(adapter, "l", "key")[layer], v * part(adapter, "l", "value")[layer]]
        assert torch.equal(result, torch.stack(expected, dim=1))
        assert torch.equal(folded.input(layer, INPUTS, x), x)
        scaled = folded.input(layer, ("fc2",), x)
        assert torch.equal(scaled, x * part(adapter, "l", "fc2")[layer])


@torch.no_grad()
def test_bitfit_is_the_model_with_other_biases(make_lm, chains):
    lm, other = make_lm("bitfit", targets=ALL, norms=True), make_lm("none")
    for layer, target in lm.adapter.matrices():
        other.bias(layer, target).add_(part(lm.adapter, "bias", target)[layer])
    norms = {"self_attn_layer_norm": "attention", "final_layer_norm": "feed_forward"}
    for name, ours in norms.items():
        for layer, change in enumerate(lm.adapter.get_parameter(f"norm_{ours}")):
            getattr(other.layers[layer], name).bias.add_(change)
    mask = chains[1]
    reference = other(*chains)[mask]
    assert (lm(*chains)[mask] - reference).norm() < 1e-6 * reference.norm()


GRADIENTS = [
    ("lorta", ATTENTION, {"component_weights": True}),
    ("lotr", ATTENTION, {}),
    ("fact_tk", ALL, {}),
    ("loretta_rep", ("query", "fc2"), {"tt_rank": 2}),
    ("loretta_adp", ("output",), {"tt_rank": 2}),
    ("tt_lora", ("query", "fc1"), {}),
]


@pytest.mark.parametrize(("kind", "targets", "settings"), GRADIENTS)
def test_gradients_are_those_of_finite_differences(kind, targets, settings):
    adapter = moved(kind, rank=2, alpha=1.0, targets=targets, **settings)
    names = [name for name, _ in adapter.named_parameters()]
    x = torch.randn(2, 4 * SHAPE.width, dtype=torch.float64)

    def result(*factors):
        state = dict(zip(names, factors, strict=True))
        folded = Adaptation(adapter, functional_call(adapter, state, (torch.float64,)))
        y = []
        for group in adapter.groups():
            own = x[:, : SHAPE.fan_in(group[0])]
            blank = torch.ones(len(x), sum(map(SHAPE.fan_out, group)), dtype=torch.float64)
            y.append(folded.output(1, group, own, blank, torch.nn.Identity()).flatten())
        return torch.cat(y)

    factors = [p.detach().requires_grad_() for _, p in adapter.named_parameters()]
    assert torch.autograd.gradcheck(result, factors, fast_mode=True)
