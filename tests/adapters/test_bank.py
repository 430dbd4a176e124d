"""What a bank of adapters refuses, and what it keeps in memory."""

import copy

import pytest
import torch

from esmfold_peft.adapters.bank import AdapterBank, AdapterChoice, read_bank
from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.insert import build_adapter
from esmfold_peft.adapters.io import save_adapter
from esmfold_peft.config import AdapterConfig
from esmfold_peft.errors import UserError
from esmfold_peft.weights.esm2_weights import weights_hash


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 4}, "x and y cannot share a batch: rank is 2 and 4"),
        ({"alpha": 3.0}, "alpha is 1.0 and 3.0"),
        ({"kind": "lora"}, "kind is lorta and lora"),
        ({"targets": ("query", "value")}, "targets is .* and .*"),
    ],
)
def test_adapters_of_different_kinds_are_refused(make_lm, settings, message):
    one = make_lm("lorta", rank=2).adapter
    other = make_lm(**{"kind": "lorta", "rank": 2} | settings).adapter
    with pytest.raises(UserError, match=message):
        AdapterBank({"x": one, "y": other})


def test_how_an_adapter_was_trained_does_not_matter(make_lm):
    one = make_lm("lorta", rank=2, targets=("query", "key"))
    other = make_lm(
        "lorta",
        rank=2,
        targets=("key", "query"),
        init="paper",
        freeze=("a",),
        lr_factors={"b": 2.0},
    )
    assert AdapterBank({"x": one.adapter, "y": other.adapter}).index("y") == 1


def test_adapters_of_other_sizes_are_refused(make_lm):
    other = build_adapter(AttentionShape(3, 48, 4), AdapterConfig())
    with pytest.raises(UserError, match="x and y belong to language models of different sizes"):
        AdapterBank({"x": make_lm("lorta").adapter, "y": other})


def test_a_file_for_another_language_model_is_refused(make_lm, tmp_path):
    lm = make_lm("lorta")
    save_adapter(lm.adapter, tmp_path, weights_hash(lm))
    with pytest.raises(UserError, match="base_sha256 is"):
        read_bank({"x": tmp_path}, lm, "0" * 64)


def test_what_adapters_have_in_common_is_kept_once(make_lm):
    # VeRA's random matrices of one seed.
    adapters = {name: make_lm("vera", rank=2, seed=4).adapter for name in "xyz"}
    for adapter in adapters.values():
        with torch.no_grad():
            for factor in adapter.parameters():
                factor.add_(torch.randn_like(factor))
    bank = AdapterBank(adapters)
    held = sum(tensor.numel() for tensor in bank.buffers())
    trained = sum(p.numel() for p in adapters["x"].parameters())
    assert held == 2 * 2 * 40 + 3 * trained


@torch.no_grad()
def test_the_same_adapter_under_two_names(make_lm, chains):
    lm, plain = make_lm("lorta", rank=2), make_lm("none")
    bank = AdapterBank({"x": lm.adapter, "y": copy.deepcopy(lm.adapter)})
    together = plain(*chains, AdapterChoice(bank, torch.tensor([1, 0])))
    torch.testing.assert_close(together, lm(*chains), rtol=1e-5, atol=1e-5)


def test_a_bank_holds_the_factors_and_nothing_else(make_lm):
    # LoRTA's appeal for many adapters: 60 numbers a rank here, not the 1,440 of the folded G.
    adapters = {str(i): make_lm("lorta", rank=2, seed=i).adapter for i in range(5)}
    bank = AdapterBank(adapters)
    held = sum(tensor.numel() for tensor in [*bank.parameters(), *bank.buffers()])
    assert held == 5 * sum(p.numel() for p in adapters["0"].parameters()) == 5 * 120
    assert torch.equal(bank.a[3], adapters["3"].a)
