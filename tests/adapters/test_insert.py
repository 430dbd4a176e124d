"""What trains, how many numbers, and that a fresh adapter changes nothing but can learn."""

import pytest
import torch

from esmfold_peft.adapters.insert import insert_adapter, trainable_adapter_parameters
from esmfold_peft.config import AdapterConfig
from esmfold_peft.errors import UserError
from esmfold_peft.model.language_model import LanguageModel

QKV = ("query", "key", "value")
QKVP = (*QKV, "output")
KINDS = [("lora", "unit"), ("lora", "paper"), ("lorta", "unit"), ("lorta", "paper")]


@pytest.mark.parametrize(
    ("kind", "rank", "targets", "count"),
    [
        ("lora", 1, QKV, 34_560),
        ("lora", 1, QKVP, 46_080),
        ("lora", 8, QKVP, 368_640),
        ("lorta", 1, QKV, 539),
        ("lorta", 1, QKVP, 540),
        ("lorta", 8, QKVP, 4_320),
        ("lorta", 64, QKVP, 34_560),
        ("none", 1, QKV, 0),
    ],
)
def test_trainable_parameters_on_esm2_35m(kind, rank, targets, count):
    with torch.device("meta"):
        lm = LanguageModel.random("esm2_t12_35M_UR50D")
    insert_adapter(lm, AdapterConfig(kind=kind, rank=rank, targets=targets))
    assert trainable_adapter_parameters(lm) == count
    assert sum(p.numel() for p in lm.parameters() if p.requires_grad) == count


def test_full_trains_every_weight(make_lm):
    lm = make_lm("full")
    assert lm.adapter is None
    assert all(p.requires_grad for p in lm.parameters())
    assert trainable_adapter_parameters(lm) == sum(p.numel() for p in lm.parameters())


@pytest.mark.parametrize(("kind", "init"), KINDS)
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
def test_a_fresh_adapter_leaves_the_output_bit_equal(make_lm, chains, kind, init, autocast):
    plain = make_lm("none")
    lm = make_lm(kind, trained=False, rank=3, alpha=384.0, targets=QKVP, init=init)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        assert torch.equal(lm(*chains), plain(*chains))


@pytest.mark.parametrize(("kind", "init"), KINDS)
@pytest.mark.parametrize("checkpoint", [False, True], ids=["kept", "recomputed"])
def test_every_factor_learns_within_three_steps(make_lm, chains, kind, init, checkpoint):
    lm = make_lm(kind, trained=False, rank=2, alpha=2.0, targets=QKVP, init=init)
    lm.checkpoint = checkpoint
    frozen = {name: p.detach().clone() for name, p in lm.base_parameters()}
    # Each factor's gradient in every layer, head, matrix and channel, summed over the steps.
    seen = {name: torch.zeros_like(p) for name, p in lm.adapter.named_parameters()}
    optimizer = torch.optim.Adam([p for p in lm.parameters() if p.requires_grad], lr=1e-2)
    target = torch.randn(2, 9, 4, 40)
    for _ in range(3):
        optimizer.zero_grad()
        (lm(*chains) - target).square().mean().backward()
        for name, p in lm.adapter.named_parameters():
            seen[name] += p.grad.abs()
        optimizer.step()
    for name, gradient in seen.items():
        assert (gradient > 0).all(), name
    for name, p in lm.base_parameters():
        assert torch.equal(p, frozen[name])
        assert p.grad is None


@pytest.mark.parametrize("kind", ["lora", "lorta"])
@torch.no_grad()
def test_bfloat16_autocast_is_close(make_lm, chains, kind):
    lm, mask = make_lm(kind, rank=2, alpha=0.5, targets=QKVP), chains[1]
    adapted, plain = lm(*chains)[mask], make_lm("none")(*chains)[mask]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = lm(*chains)[mask]
    assert (adapted - plain).norm() > 0.05 * plain.norm()
    assert 0 < (rounded - adapted).norm() < 2e-2 * adapted.norm()


def test_each_factor_is_one_parameter(make_lm):
    for kind, count in (("lora", 2), ("lorta", 5)):
        parameters = list(make_lm(kind).adapter.parameters())
        assert len({id(p) for p in parameters}) == len(parameters) == count


def test_the_order_of_targets_in_the_config_does_not_matter(make_lm, chains):
    one = make_lm("lorta", rank=2, targets=("output", "value", "query"))
    two = make_lm("lorta", rank=2, targets=("query", "value", "output"))
    assert one.adapter.targets == ("query", "value", "output")
    assert torch.equal(one(*chains), two(*chains))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AdapterConfig(rank=0), "adapter.rank: 0"),
        (AdapterConfig(kind="lora", alpha=-1.0), "adapter.alpha: -1.0"),
        (AdapterConfig(alpha=float("nan")), "adapter.alpha: nan"),
        (AdapterConfig(targets=()), "adapter.targets: empty"),
        (AdapterConfig(targets=("key", "key")), "adapter.targets: key is named twice"),
    ],
)
def test_settings_that_make_no_adapter_are_named(make_lm, config, message):
    with pytest.raises(UserError, match=message):
        insert_adapter(make_lm("none"), config)


def test_a_second_adapter_is_refused(make_lm):
    with pytest.raises(ValueError, match="has an adapter already"):
        insert_adapter(make_lm("lora"), AdapterConfig())
