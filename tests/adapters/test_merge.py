"""Merged weights predict what the adapter predicted, and come apart exactly."""

import pytest
import torch

from esmfold_peft.adapters.merge import merge, unmerge

QKVP = ("query", "key", "value", "output")
KINDS = pytest.mark.parametrize("kind", ["lora", "lorta"])


@KINDS
@pytest.mark.parametrize("targets", [QKVP, ("key",)])
@torch.no_grad()
def test_merged_equals_adapted(make_lm, chains, kind, targets):
    lm = make_lm(kind, rank=2, alpha=4.0, targets=targets)
    mask = chains[1]
    adapted, plain = lm(*chains)[mask], make_lm("none")(*chains)[mask]
    assert (adapted - plain).norm() > 0.05 * plain.norm()
    merged = merge(lm)
    assert lm.adapter is None
    assert merged.rounding < 1e-4
    assert (lm(*chains)[mask] - adapted).norm() < 1e-5 * adapted.norm()


@KINDS
@torch.no_grad()
def test_unmerging_restores_every_bit(make_lm, chains, kind):
    lm = make_lm(kind, rank=2, targets=QKVP)
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    adapted = lm(*chains)
    unmerge(lm, merge(lm))
    assert before.keys() == lm.state_dict().keys()
    for name, value in lm.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(lm(*chains), adapted)


@KINDS
def test_only_adapted_matrices_change(make_lm, kind):
    lm = make_lm(kind, targets=("value",))
    before = {name: p.detach().clone() for name, p in lm.base_parameters()}
    merge(lm)
    changed = {name for name, p in lm.base_parameters() if not torch.equal(p, before[name])}
    assert changed == {f"layers.{layer}.self_attn.v_proj.weight" for layer in range(3)}


@KINDS
def test_bfloat16_weights_report_what_they_lose(make_lm, kind):
    small = make_lm(kind, rank=2, alpha=2e-3).bfloat16()
    large = make_lm(kind, rank=2, alpha=20.0).bfloat16()
    assert merge(small).rounding > 0.1
    assert merge(large).rounding < 0.1


def test_a_fresh_adapter_merges_to_the_same_weights(make_lm):
    lm, plain = make_lm("lorta", trained=False), make_lm("none")
    assert merge(lm).rounding == 0
    for (name, p), q in zip(lm.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_merging_twice_is_refused(make_lm):
    lm = make_lm("lorta")
    merged = merge(lm)
    with pytest.raises(ValueError, match="no adapter to merge"):
        merge(lm)
    unmerge(lm, merged)
    with pytest.raises(ValueError, match="has an adapter already"):
        unmerge(lm, merged)
