"""What holds for every method: its start, what learns, batches, precision, merging, files."""

import pytest
import torch

from esmfold_peft.adapters.bank import AdapterBank, AdapterChoice, read_bank
from esmfold_peft.adapters.base import INPUTS, OUTPUT, TARGETS
from esmfold_peft.adapters.insert import ADAPTERS
from esmfold_peft.adapters.io import load_adapter, save_adapter
from esmfold_peft.adapters.merge import merge, unmerge
from esmfold_peft.config import AdapterConfig
from esmfold_peft.errors import UserError
from esmfold_peft.weights.esm2_weights import weights_hash

LINEAR = sorted(set(ADAPTERS) - {"loretta_adp"})
MOVED_AT_START = ("loretta_rep", "loretta_adp", "tt_lora")
"""Methods whose authors start them with an update that is not zero."""

EVERY = pytest.mark.parametrize("kind", sorted(ADAPTERS))
EVERY_LINEAR = pytest.mark.parametrize("kind", LINEAR)


def everything(kind):
    """Settings that adapt all that a method can."""
    norms = {"norms": True} if kind == "bitfit" else {}
    return {"kind": kind, "rank": 2, "targets": ADAPTERS[kind].allowed, **norms}


def relative(x, reference):
    return ((x - reference).norm() / reference.norm()).item()


@EVERY
@pytest.mark.parametrize("targets", [None, INPUTS, ("query", "value")], ids=["all", "qkv", "qv"])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
@torch.no_grad()
def test_a_fresh_adapter_leaves_the_output_bit_equal(make_lm, chains, kind, targets, autocast):
    settings = everything(kind)
    if targets is not None:
        settings = {"kind": kind, "rank": 3, "targets": targets}
    plain, lm = make_lm("none"), make_lm(trained=False, alpha=384.0, **settings)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        assert torch.equal(lm(*chains), plain(*chains))


@EVERY
@torch.no_grad()
def test_the_published_start_moves_the_output_where_the_authors_do(make_lm, chains, kind):
    plain, lm = make_lm("none"), make_lm(trained=False, init="paper", **everything(kind))
    moved = relative(lm(*chains), plain(*chains))
    assert (moved > 1e-3) == (kind in MOVED_AT_START)
    assert (moved == 0) == (kind not in MOVED_AT_START)


@EVERY
@pytest.mark.parametrize("init", ["unit", "paper"])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_every_number_has_a_gradient_within_two_steps(make_lm, chains, kind, init, recompute):
    lm = make_lm(trained=False, init=init, **everything(kind))
    lm.recompute = recompute
    base = {name: p.detach().clone() for name, p in lm.base_parameters()}
    fixed = {n: p.detach().clone() for n, p in lm.adapter.named_parameters() if not p.requires_grad}
    learning = {n: p for n, p in lm.adapter.named_parameters() if p.requires_grad}
    seen = {name: torch.zeros_like(p) for name, p in learning.items()}
    optimizer = torch.optim.Adam(learning.values(), lr=1e-2)
    target = torch.randn(2, 9, 4, 40, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        optimizer.zero_grad()
        (lm(*chains) - target).square().mean().backward()
        for name, p in learning.items():
            seen[name] += p.grad.abs()
        optimizer.step()
    for name, gradient in seen.items():
        assert (gradient > 0).all(), name
    for name, p in lm.base_parameters():
        assert torch.equal(p, base[name])
        assert p.grad is None
    for name, value in fixed.items():
        assert torch.equal(lm.adapter.get_parameter(name), value)


@EVERY
@torch.no_grad()
def test_a_chain_alone_equals_the_same_chain_in_a_batch(make_lm, chains, kind):
    lm, (aatype, mask) = make_lm(**everything(kind)), chains
    together = lm(aatype, mask)
    for i, length in enumerate(mask.sum(1)):
        alone = lm(aatype[i : i + 1, :length], mask[i : i + 1, :length])
        assert relative(together[i : i + 1, :length], alone) < 1e-6


@EVERY
@torch.no_grad()
def test_bfloat16_autocast_is_close(make_lm, chains, kind):
    lm, mask = make_lm(alpha=0.5, **everything(kind)), chains[1]
    adapted, plain = lm(*chains)[mask], make_lm("none")(*chains)[mask]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = lm(*chains)[mask]
    assert relative(adapted, plain) > 0.05
    assert 0 < relative(rounded, adapted) < 2e-2


@pytest.mark.parametrize("kind", ["fact_tt", "fact_tk", "loretta_rep", "tt_lora", "nola"])
@torch.no_grad()
def test_folding_is_in_float32_under_autocast(make_lm, kind):
    # These fold by matrix products, which autocast would compute in bfloat16.
    adapter = make_lm(**everything(kind)).adapter
    plain = adapter.fold(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = adapter.fold(torch.float32)
    for group in adapter.groups():
        for one, two in zip(plain.factors[group], cast.factors[group], strict=True):
            assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))


@EVERY
def test_recomputing_activations_changes_no_gradient(make_lm, chains, kind):
    gradients = []
    for recompute in (False, True):
        lm = make_lm(**everything(kind))
        lm.recompute = recompute
        lm(*chains)[chains[1]].square().mean().backward()
        gradients.append([p.grad for p in lm.adapter.parameters() if p.requires_grad])
    for one, two in zip(*gradients, strict=True):
        assert relative(one, two) < 1e-5


@EVERY_LINEAR
@pytest.mark.parametrize("targets", [None, ("key",)], ids=["all", "key"])
@torch.no_grad()
def test_merged_equals_adapted(make_lm, chains, kind, targets):
    settings = everything(kind)
    if targets is not None:
        settings = {"kind": kind, "rank": 2, "targets": targets}
    lm, mask = make_lm(alpha=4.0, **settings), chains[1]
    adapted, plain = lm(*chains)[mask], make_lm("none")(*chains)[mask]
    assert relative(adapted, plain) > 0.01
    merged = merge(lm)
    assert lm.adapter is None
    assert merged.lost < 1e-4
    assert relative(lm(*chains)[mask], adapted) < 1e-5


@EVERY_LINEAR
@torch.no_grad()
def test_unmerging_restores_every_bit(make_lm, chains, kind):
    lm = make_lm(**everything(kind))
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    adapted = lm(*chains)
    unmerge(lm, merge(lm))
    assert before.keys() == lm.state_dict().keys()
    for name, value in lm.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(lm(*chains), adapted)


def test_what_is_not_linear_says_that_it_cannot_be_merged(make_lm):
    lm = make_lm("loretta_adp")
    with pytest.raises(UserError, match="loretta_adp cannot be merged: it is not linear"):
        merge(lm)
    assert lm.adapter is not None


@EVERY
@torch.no_grad()
def test_a_saved_adapter_predicts_the_same(make_lm, chains, tmp_path, kind):
    lm = make_lm(alpha=6.0, **everything(kind))
    save_adapter(lm.adapter, tmp_path / "a" / "b", weights_hash(lm))
    other = make_lm("full")
    torch.manual_seed(77)
    state = torch.random.get_rng_state()
    adapter = load_adapter(other, tmp_path / "a" / "b", weights_hash(other))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert other.adapter is adapter
    assert adapter.config == lm.adapter.config
    assert torch.equal(other(*chains), lm(*chains))
    learning = {f"adapter.{n}" for n, p in lm.adapter.named_parameters() if p.requires_grad}
    assert {name for name, p in other.named_parameters() if p.requires_grad} == learning


@EVERY
def test_every_factor_is_one_tensor_for_all_layers(make_lm, kind):
    lm = make_lm(**everything(kind))
    parameters = list(lm.adapter.parameters())
    assert len({p.untyped_storage().data_ptr() for p in parameters}) == len(parameters)
    # Files hold each once: as many numbers as the state has.
    state = lm.adapter.state_dict()
    assert {p.untyped_storage().data_ptr() for p in parameters} <= {
        t.untyped_storage().data_ptr() for t in state.values()
    }
    assert len({t.untyped_storage().data_ptr() for t in state.values()}) == len(state)
    assert all(not name.startswith("layers") for name in state)


@EVERY
@torch.no_grad()
def test_many_adapters_in_a_batch_equal_one_by_one(make_lm, kind):
    models = [make_lm(seed=seed, alpha=2.0, **everything(kind)) for seed in range(3)]
    bank = AdapterBank({f"a{i}": lm.adapter for i, lm in enumerate(models)})
    aatype = torch.randint(0, 20, (5, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(9) < torch.tensor([9, 6, 9, 3, 1])[:, None]
    which = torch.tensor([2, 0, 1, 2, 0])
    plain = make_lm("none")
    together = plain(aatype, mask, AdapterChoice(bank, which))
    for row, member in enumerate(which):
        alone = models[member](aatype[row : row + 1], mask[row : row + 1])
        assert relative(together[row][mask[row]], alone[0][mask[row]]) < 1e-6
        unadapted = plain(aatype[row : row + 1], mask[row : row + 1])
        assert relative(unadapted[0][mask[row]], alone[0][mask[row]]) > 0.01


@EVERY
@torch.no_grad()
def test_a_bank_is_read_from_files(make_lm, chains, tmp_path, kind):
    models = {name: make_lm(seed=i, **everything(kind)) for i, name in enumerate("xy")}
    for name, lm in models.items():
        save_adapter(lm.adapter, tmp_path / name, weights_hash(lm))
    plain = make_lm("none")
    bank = read_bank({name: tmp_path / name for name in "yx"}, plain, weights_hash(plain))
    assert bank.names == ("y", "x")
    choice = AdapterChoice(bank, torch.tensor([bank.index("x"), bank.index("y")]))
    together, mask = plain(*chains, choice), chains[1]
    for row, name in enumerate("xy"):
        alone = models[name](*chains)[row][mask[row]]
        assert relative(together[row][mask[row]], alone) < 1e-6


@EVERY
def test_targets_that_a_method_cannot_adapt_are_refused(kind):
    for target in TARGETS:
        config = AdapterConfig(kind=kind, targets=(target,))
        if target in ADAPTERS[kind].allowed:
            ADAPTERS[kind].check(config)
        else:
            with pytest.raises(UserError, match=f"{kind} cannot adapt {target}, only query"):
                ADAPTERS[kind].check(config)


def test_the_order_of_targets_in_the_config_does_not_matter(make_lm, chains):
    for kind in ADAPTERS:
        one = make_lm(kind, rank=2, targets=(*OUTPUT, "value", "query"))
        two = make_lm(kind, rank=2, targets=("query", "value", *OUTPUT))
        assert one.adapter.targets == ("query", "value", "output")
        assert torch.equal(one(*chains), two(*chains))
