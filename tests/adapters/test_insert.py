"""What trains, how many numbers, and settings that make no adapter."""

import pytest
import torch

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.insert import insert_adapter, trainable_adapter_parameters
from esmfold_peft.config import AdapterConfig
from esmfold_peft.errors import UserError
from esmfold_peft.model.language_model import LanguageModel

ALL = ("query", "key", "value", "output", "fc1", "fc2")


def test_frozen_trains_nothing_and_full_everything(make_lm):
    for kind in ("none", "full"):
        lm = make_lm(kind)
        assert lm.adapter is None
        assert all(p.requires_grad == (kind == "full") for p in lm.parameters())
        whole = sum(p.numel() for p in lm.parameters())
        assert trainable_adapter_parameters(lm) == (whole if kind == "full" else 0)


def test_only_the_adapter_trains(make_lm):
    lm = make_lm("lorta", rank=2)
    trainable = {name for name, p in lm.named_parameters() if p.requires_grad}
    assert trainable == {f"adapter.{name}" for name in ("a", "b", "c_h", "c_l", "c_m")}
    assert trainable_adapter_parameters(lm) == 2 * (40 + 10 + 4 + 3 + 3)


def test_frozen_factors_do_not_count(make_lm):
    assert trainable_adapter_parameters(make_lm("lora", rank=2)) == 3 * 3 * 2 * (40 + 40)
    assert trainable_adapter_parameters(make_lm("lora", rank=2, freeze=("a",))) == 3 * 3 * 2 * 40
    assert trainable_adapter_parameters(make_lm("lora_fa", rank=2)) == 3 * 3 * 2 * 40
    lorta = make_lm("lorta", rank=2, freeze=("a", "c_h", "c_l", "c_m"))
    assert trainable_adapter_parameters(lorta) == 2 * 10


def test_the_scale(make_lm):
    for scaling, scale in (("alpha/r", 2.0), ("alpha/sqrt(r)", 4.0), ("constant", 8.0)):
        assert make_lm("lora", rank=4, alpha=8.0, scaling=scaling).adapter.scale == scale
    for kind in ("vera", "ia3", "bitfit"):
        assert make_lm(kind, rank=4, alpha=8.0).adapter.scale is None


def test_the_scale_reaches_the_update(make_lm, chains):
    with torch.no_grad():
        one = make_lm("lora", rank=4, alpha=8.0, scaling="alpha/sqrt(r)")
        two = make_lm("lora", rank=4, alpha=16.0, scaling="alpha/r")
        assert torch.equal(one(*chains), two(*chains))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AdapterConfig(rank=0), "adapter.rank: 0"),
        (AdapterConfig(kind="lora", alpha=-1.0), "adapter.alpha: -1.0"),
        (AdapterConfig(alpha=float("nan")), "adapter.alpha: nan"),
        (AdapterConfig(targets=()), "adapter.targets: empty"),
        (AdapterConfig(targets=("key", "key")), "adapter.targets: key is named twice"),
        (AdapterConfig(modes=("heads", "heads")), "adapter.modes: heads is named twice"),
        (AdapterConfig(targets=("fc1",)), "lorta cannot adapt fc1, only query, key, value, output"),
        (
            AdapterConfig(kind="lora", orientation="peft"),
            "orientation: peft has no meaning",
        ),
        (AdapterConfig(kind="lora", modes=("heads",)), "modes: .* has no meaning for lora"),
        (AdapterConfig(tt_rank=3), "adapter.tt_rank: 3 has no meaning for lorta"),
        (AdapterConfig(kind="vera", bases=3), "adapter.bases: 3 has no meaning for vera"),
        (AdapterConfig(kind="loretta_rep", tt_rank=0), "adapter.tt_rank: 0"),
        (
            AdapterConfig(kind="bitfit", norms=True),
            "norms: needs all six .* output is missing",
        ),
        (AdapterConfig(freeze=("q",)), "freeze: lorta has no factor q; it has a, b, c_h, c_l, c_m"),
        (AdapterConfig(freeze=("b",)), "freeze: b starts at zero and would stay zero"),
        (AdapterConfig(kind="ia3", freeze=("l",)), "adapter.freeze: nothing is left to train"),
        (AdapterConfig(lr_factors={"d": 2.0}), "lr_factors: lorta has no factor d"),
        (AdapterConfig(kind="nola", freeze=("b",)), "freeze: b starts at zero and would stay zero"),
        (AdapterConfig(kind="tt_lora", freeze=("g6",)), "freeze: g6 starts at zero and would stay"),
        (
            AdapterConfig(kind="bitfit", freeze=("bias",)),
            "adapter.freeze: nothing is left to train",
        ),
        (AdapterConfig(lr_factors={"b": -2.0}), "lr_factors: b has -2.0, but a multiplier must"),
        (AdapterConfig(lr_factors={"b": 0.0}), "b has 0.0, but .* use adapter.freeze to keep a"),
        (AdapterConfig(init="direct"), "adapter.init: direct has no meaning for lorta"),
        (
            AdapterConfig(kind="loretta_rep", init="direct"),
            "init: direct has no meaning",
        ),
        (AdapterConfig(kind="lora_fa", lr_factors={"a": 2.0}), "lr_factors: a is frozen"),
    ],
)
def test_settings_that_make_no_adapter_are_named(make_lm, config, message):
    lm = make_lm("full")
    with pytest.raises(UserError, match=message):
        insert_adapter(lm, config)
    assert lm.adapter is None
    assert all(p.requires_grad for p in lm.parameters())


def test_a_second_adapter_is_refused(make_lm):
    for kind in ("lorta", "none"):
        with pytest.raises(ValueError, match="has an adapter already"):
            insert_adapter(make_lm("lora"), AdapterConfig(kind=kind))


@pytest.mark.parametrize(
    ("kind", "frozen", "settings"),
    [
        ("nola", "a", {}),
        ("loretta_adp", "down", {"targets": ("output",)}),
        ("bitfit", "norm_attention", {"targets": ALL, "norms": True}),
    ],
)
def test_what_a_method_can_do_without_may_be_frozen_at_zero(
    make_lm, chains, kind, frozen, settings
):
    plain = make_lm("none")(*chains)
    lm = make_lm(kind, trained=False, freeze=(frozen,), **settings)
    optimizer = torch.optim.Adam([p for p in lm.adapter.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        lm(*chains)[chains[1]].square().mean().backward()
        optimizer.step()
    factors = lm.adapter.factor_parameters()
    assert not any(p.any() for p in factors.pop(frozen))
    assert all(p.any() for group in factors.values() for p in group)
    assert (lm(*chains) - plain).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "name", "useful", "settings"),
    [
        ("lora", "rank", 40, {"targets": ("query", "fc1")}),
        ("lora", "rank", 160, {"targets": ("query", "fc2"), "freeze": ("a",)}),
        ("lora_fa", "rank", 40, {"targets": ("fc1",)}),
        ("dora", "rank", 40, {}),
        ("lotr", "rank", 40, {}),
        ("fact_tt", "rank", 40, {"targets": ALL}),
        ("fact_tk", "rank", 40, {}),
        ("tt_lora", "rank", 40, {"targets": ("key", "fc2")}),
        # 40 is 5 · 4 · 2 (and 8 for the rank): 5 | 64, 20 | 16, 40 | 8.
        ("loretta_rep", "tt_rank", 16, {"rank": 8}),
        ("loretta_adp", "tt_rank", 16, {"rank": 8}),
        ("nola", "bases", 320, {"rank": 2, "targets": ("query", "fc1")}),
        ("nola", "bases", 320, {"rank": 2, "targets": ("query", "fc2")}),
        ("nola", "bases", 80, {"rank": 2, "targets": ("fc2",), "freeze": ("a",)}),
    ],
)
def test_a_rank_beyond_use_is_warned_of(make_lm, kind, name, useful, settings):
    for value in (useful, useful + 1):
        lines = make_lm(kind, **settings | {name: value}).adapter.rank_warnings()
        assert len(lines) == value - useful
        for line in lines:
            assert line.startswith(f"adapter.{name}: {value} is more than {kind} can use")
            assert f"above {useful} " in line


def test_kinds_without_an_exact_limit_warn_of_none(make_lm):
    for kind in ("lorta", "vera", "nola"):
        assert make_lm(kind, rank=500).adapter.rank_warnings() == []
    for kind, frozen in (("fact_tt", "sigma"), ("fact_tk", "core")):
        assert make_lm(kind, rank=41, freeze=(frozen,)).adapter.rank_warnings() == []


def dimensions(kind, freeze=(), **settings):
    """In how many directions a method can move its updates of three layers from a random point."""
    lm = LanguageModel.random(AttentionShape(layers=3, width=8, heads=2), seed=3)
    torch.manual_seed(0)
    config = AdapterConfig(kind=kind, targets=("query", "key"), freeze=freeze, **settings)
    adapter = insert_adapter(lm, config).double()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn_like(parameter))
    updates = torch.stack([adapter.delta_weight(*place) for place in adapter.matrices()]).flatten()
    trained = [parameter for parameter in adapter.parameters() if parameter.requires_grad]
    each = torch.eye(len(updates), dtype=torch.float64)
    parts = torch.autograd.grad(updates, trained, each, is_grads_batched=True)
    jacobian = torch.cat([part.flatten(1) for part in parts], dim=1)
    return int(torch.linalg.matrix_rank(jacobian, rtol=1e-9))


@pytest.mark.parametrize(("kind", "inner"), [("fact_tt", "sigma"), ("fact_tk", "core")])
def test_shared_factors_stop_at_their_width_unless_the_inner_one_is_frozen(kind, inner):
    # Six matrices of 8 x 8.
    assert [dimensions(kind, rank=rank) for rank in (7, 8, 9)] == [6 * 49 + 2 * 7, 384, 384]
    frozen = [dimensions(kind, (inner,), rank=rank) for rank in (8, 9, 10)]
    assert frozen[0] < frozen[1] < frozen[2] < 384


def test_nola_stops_at_as_many_bases_as_a_factor_has_numbers():
    # 28 is the dimension of the 8 x 8 matrices of rank 2, 16 that of B.
    found = [dimensions("nola", rank=2, bases=k) for k in (10, 16, 17, 24)]
    assert found == [6 * 20, 6 * 28, 6 * 28, 6 * 28]
    found = [dimensions("nola", ("a",), rank=2, bases=k) for k in (15, 16, 17, 24)]
    assert found == [6 * 15, 6 * 16, 6 * 16, 6 * 16]


@pytest.mark.parametrize("scaling", ["alpha/r", "constant"])
def test_tt_lora_says_that_its_scale_is_that_of_the_rank_asked_for(make_lm, scaling):
    adapter = make_lm("tt_lora", rank=64, alpha=6.0, scaling=scaling).adapter
    (line,) = adapter.rank_warnings()
    assert line.endswith("; r in alpha/r is still 64") == (adapter.scale == 6 / 64)
    assert line.endswith("can be reached") == (adapter.scale == 6)
