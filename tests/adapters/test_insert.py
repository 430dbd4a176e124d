"""What trains, how many numbers, and settings that make no adapter."""

import pytest
import torch

from esmfold_peft.adapters.insert import insert_adapter, trainable_adapter_parameters
from esmfold_peft.config import AdapterConfig
from esmfold_peft.errors import UserError

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
        (AdapterConfig(lr_factors={"b": -2.0}), "lr_factors: -2.0 of b is no number"),
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
