"""How each method draws its factors: bounds and spreads of the published code, and ours."""

import math

import pytest
import torch

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.insert import build_adapter
from esmfold_peft.adapters.tensor_train import contract, core_shapes, mode_sizes, random_cores
from esmfold_peft.config import AdapterConfig

WIDE = AttentionShape(layers=20, width=400, heads=100)


def fresh(kind, **settings):
    torch.manual_seed(0)
    return build_adapter(WIDE, AdapterConfig(kind=kind, rank=8, **settings))


def assert_uniform(factor, bound, rel=6e-2):
    """Between -bound and bound, all of it used, no value preferred."""
    assert factor.abs().max().item() == pytest.approx(bound, rel=2e-2)
    assert factor.std().item() == pytest.approx(bound / math.sqrt(3), rel=rel)
    assert abs(factor.mean().item()) < 0.1 * bound


@pytest.mark.parametrize("kind", ["lora", "lora_fa", "dora"])
@pytest.mark.parametrize("init", ["unit", "paper"])
def test_lora(kind, init):
    adapter = fresh(kind, init=init, targets=("query", "fc2"))
    assert_uniform(adapter.a_query, 1 / math.sqrt(400))
    assert_uniform(adapter.a_fc2, 1 / math.sqrt(1600))
    assert not adapter.b_query.any()


def test_lorta_unit():
    adapter = fresh("lorta", init="unit")
    for mode in (adapter.c_h, adapter.c_l):
        assert torch.equal(mode.abs(), torch.ones_like(mode))
        assert abs(mode.mean().item()) < 0.15
    assert_uniform(adapter.a, 1 / math.sqrt(400))
    assert not adapter.b.any()


def test_lorta_paper():
    adapter = fresh("lorta", init="paper")
    assert_uniform(adapter.c_h, math.sqrt(6 / 8))
    assert_uniform(adapter.c_l, math.sqrt(6 / 8))
    assert_uniform(adapter.a, 1 / math.sqrt(8))
    assert not adapter.b.any()


def test_lorta_components_start_with_weight_one():
    adapter = fresh("lorta", component_weights=True)
    assert torch.equal(adapter.weight, torch.ones(8))


def test_lotr():
    paper, unit = fresh("lotr", init="paper"), fresh("lotr", init="unit")
    assert paper.rhs.std().item() == pytest.approx(1, rel=5e-2)
    assert paper.lhs.std().item() == pytest.approx(1, rel=5e-2)
    assert_uniform(unit.rhs, 1 / math.sqrt(400))
    assert unit.lhs.std().item() == pytest.approx(1 / math.sqrt(8), rel=5e-2)
    assert not paper.mid.any()
    assert not unit.mid.any()


def test_fact():
    tt, tk = fresh("fact_tt"), fresh("fact_tk")
    mixed = fresh("fact_tt", targets=("query", "fc1", "fc2")).sigma
    for adapter in (tt, tk):
        assert_uniform(adapter.u, 1 / math.sqrt(400))
        assert not adapter.v.any()
    assert_uniform(tt.sigma, 1 / math.sqrt(8))
    # The authors hold the four blocks of fc2 as one layer of 4 r inputs.
    assert_uniform(mixed[:, :5], 1 / math.sqrt(8))
    assert_uniform(mixed[:, 5:], 1 / (2 * math.sqrt(8)))
    assert_uniform(fresh("fact_tt", targets=("fc2",)).sigma, 1 / (2 * math.sqrt(8)))
    assert_uniform(tk.core, math.sqrt(6 / (64 + 64)))
    assert_uniform(tk.p, math.sqrt(6 / (8 + 60)))


def test_vera():
    adapter = fresh("vera", targets=("query", "fc1", "fc2"))
    assert adapter.projection_a.shape == (8, 1600)
    assert_uniform(adapter.projection_a, math.sqrt(6 / 1600))
    assert_uniform(adapter.projection_b, math.sqrt(6 / 8))
    assert torch.equal(adapter.d_fc1, torch.full((20, 8), 0.1))
    assert not adapter.b_fc2.any()


@pytest.mark.parametrize("targets", [("query",), ("query", "fc1"), ("query", "fc1", "fc2")])
def test_nola_starts_every_matrix_as_lora_whatever_else_is_adapted(targets):
    adapter = fresh("nola", targets=targets)
    for target, pair in adapter.factors().items():
        fan_in = adapter.shape.fan_in(target)
        assert_uniform(pair.a.detach(), 1 / math.sqrt(fan_in))
        assert pair.a.std().item() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=3e-2)


def test_nola():
    adapter = fresh("nola")
    assert_uniform(adapter.bases_a, 1)
    assert_uniform(adapter.bases_b, 1)
    assert not adapter.a_query.any()
    assert not adapter.b_query.any()


def entries(adapter, name, count):
    """The dense matrices of a train, all layers."""
    return contract([adapter.get_parameter(f"{name}{i}_query") for i in range(count)])


def test_loretta():
    for kind in ("loretta_rep", "loretta_adp"):
        unit, paper = fresh(kind), fresh(kind, init="paper")
        assert entries(unit, "a", 4).std().item() == pytest.approx(1 / math.sqrt(1200), rel=0.15)
        assert not unit.b3_query.any()
        assert unit.b0_query.all()
        for name in "ab":
            spread = entries(paper, name, 4).std().item()
            assert spread == pytest.approx(1 / math.sqrt(408), rel=0.15)
    bottleneck = fresh("loretta_adp", init="paper")
    assert_uniform(bottleneck.down_query, 1 / math.sqrt(8), rel=0.15)
    assert_uniform(bottleneck.up_query, 1 / math.sqrt(400))
    assert not fresh("loretta_adp").down_query.any()


def test_tt_lora():
    unit, direct = fresh("tt_lora"), fresh("tt_lora", init="direct")
    inputs = contract([unit.get_parameter(f"g{i}_query") for i in (1, 2, 3)])
    assert inputs.std().item() == pytest.approx(1 / math.sqrt(1200), rel=0.15)
    assert not unit.g6_query.any()
    for i in range(1, 7):
        core = direct.get_parameter(f"g{i}_query").flatten(1)
        torch.testing.assert_close(core.norm(dim=1), torch.ones(20))
        # Uniform: no number is more than √3 standard deviations off.
        assert core.abs().max() < 1.9 * core.std()
    whole = contract([direct.get_parameter(f"g{i}_query") for i in range(1, 7)])
    assert (whole.flatten(1).norm(dim=1) <= 1).all()


def test_modes_of_a_train_are_balanced():
    sizes = {480: (10, 8, 6), 640: (10, 8, 8), 1280: (16, 10, 8), 2560: (16, 16, 10)}
    sizes |= {320: (8, 8, 5), 5120: (20, 16, 16), 7: (7,), 4: (2, 2)}
    assert {n: mode_sizes(n) for n in sizes} == sizes


def test_bonds_are_no_wider_than_a_train_can_use():
    assert core_shapes((10, 8, 6), 64) == [(1, 10, 10), (10, 8, 6), (6, 6, 1)]
    assert core_shapes((10, 8, 6, 1), 5) == [(1, 10, 5), (5, 8, 5), (5, 6, 1), (1, 1, 1)]
    # As many numbers as a matrix of full rank, where every bond is as wide as it can be.
    cores = random_cores(1, (4, 3), 64, 1.0)
    assert [tuple(core.shape) for core in cores] == [(1, 1, 4, 3), (1, 3, 3, 1)]
