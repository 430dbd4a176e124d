"""Merged weights predict what the adapter predicted, and come apart exactly."""

import pytest
import torch

from esmfold_peft.adapters.insert import ADAPTERS, insert_adapter
from esmfold_peft.adapters.merge import merge, relative_update, unmerge
from esmfold_peft.config import AdapterConfig
from esmfold_peft.config.adapter import WITHOUT_UPDATE
from esmfold_peft.errors import UserError
from esmfold_peft.model.language_model import LanguageModel

KINDS = pytest.mark.parametrize("kind", ["lora", "lorta", "dora"])


@KINDS
def test_only_adapted_matrices_change(make_lm, kind):
    lm = make_lm(kind, targets=("value",))
    before = {name: p.detach().clone() for name, p in lm.base_parameters()}
    merge(lm)
    changed = {name for name, p in lm.base_parameters() if not torch.equal(p, before[name])}
    assert changed == {f"layers.{layer}.self_attn.in_proj.weight" for layer in range(3)}
    for layer in range(3):
        for target, slot in (("query", 0), ("key", 1)):
            old = before[f"layers.{layer}.self_attn.in_proj.weight"].chunk(3)[slot]
            assert torch.equal(lm.weight(layer, target), old)


@pytest.mark.parametrize("kind", sorted(set(ADAPTERS) - {*WITHOUT_UPDATE}))
def test_the_relative_update_is_the_largest_over_the_matrices(make_lm, kind):
    def weights(lm):
        places = [(i, target) for i in range(lm.shape.layers) for target in lm.adapter.targets]
        return {place: lm.weight(*place).detach().double().clone() for place in places}

    targets = ADAPTERS[kind].allowed
    assert relative_update(make_lm(kind, trained=False, rank=2, targets=targets)) < 1e-6
    # An update of the size of the weights, so that every sum of squares counts.
    lm = make_lm(kind, rank=2, targets=targets)
    found, before = relative_update(lm), weights(lm)
    lm.double()
    merged = {(p.layer, p.target): p.weight.detach() for p in lm.adapter.merged(lm)}
    sizes = [(merged[place] - before[place]).norm() / before[place].norm() for place in before]
    assert float(found) == pytest.approx(float(max(sizes)), rel=1e-4)
    assert float(found) > 0


@torch.no_grad()
def test_at_ten_times_its_weights_a_language_model_has_lost_its_hidden_states():
    """The default of guard.update_limit; with random weights and random updates."""
    lm = LanguageModel.random("esm2_t12_35M_UR50D")
    aatype = torch.randint(0, 20, (1, 60), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(aatype, dtype=torch.bool)
    own = lm(aatype, mask)[:, :, -1]
    torch.manual_seed(0)
    for kind in ("lora", "lorta"):
        adapter = insert_adapter(lm, AdapterConfig(kind=kind, rank=8, alpha=8.0))
        for name, factor in adapter.named_parameters():
            if name.startswith("b"):
                factor.normal_()
        whole = float(relative_update(lm))
        for size, lowest, highest in ((0.1, 0.95, 1.0), (1.0, 0.2, 0.8), (10.0, -0.1, 0.1)):
            adapter.scale = size / whole
            assert float(relative_update(lm)) == pytest.approx(size, rel=1e-3)
            cosine = torch.cosine_similarity(lm(aatype, mask)[:, :, -1], own, dim=-1).mean()
            assert lowest < float(cosine) < highest, (kind, size)
        lm.adapter = None


@pytest.mark.parametrize("kind", WITHOUT_UPDATE)
def test_no_update_is_measured_where_no_matrix_has_one(make_lm, kind):
    assert relative_update(make_lm(kind)) is None


@KINDS
def test_bfloat16_weights_that_lose_a_tenth_of_an_update_are_refused(make_lm, kind):
    lm = make_lm(kind, trained=False, rank=2, alpha=20.0).bfloat16()
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    with torch.no_grad():
        for name, factor in lm.adapter.named_parameters():
            if name.startswith("b"):
                factor.fill_(1e-6)
    with pytest.raises(UserError, match=rf"merging {kind} into bfloat16 weights rounds them by"):
        merge(lm)
    assert lm.adapter is not None
    for name, p in lm.base_parameters():
        assert torch.equal(p, before[name])
    large = make_lm(kind, rank=2, alpha=20.0).bfloat16()
    assert 0 < merge(large).lost < 0.1


@KINDS
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_is_refused(make_lm, kind, value):
    lm = make_lm(kind, rank=2)
    with torch.no_grad():
        next(lm.adapter.parameters())[0] = value
    with pytest.raises(UserError, match=f"merging {kind}: the update of query in layer 0 is not"):
        merge(lm)
    assert lm.adapter is not None


@pytest.mark.parametrize("kind", ["lorta", "fact_tk", "dora", "bitfit"])
@torch.no_grad()
def test_merging_under_autocast_is_in_float32(make_lm, chains, kind):
    settings = {"norms": True} if kind == "bitfit" else {}
    targets = ADAPTERS[kind].allowed
    lm, mask = make_lm(kind, rank=2, targets=targets, **settings), chains[1]
    adapted = lm(*chains)[mask]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        merge(lm)
    assert (lm(*chains)[mask] - adapted).norm() < 1e-5 * adapted.norm()


def test_unmerging_follows_the_model_to_another_device(make_lm):
    lm = make_lm("lorta")
    merged = merge(lm)
    unmerge(lm.to("meta"), merged)
    assert all(p.is_meta for p in lm.parameters())


def test_a_fresh_adapter_merges_to_the_same_weights(make_lm):
    lm, plain = make_lm("lorta", trained=False), make_lm("none")
    assert merge(lm).lost == 0
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
