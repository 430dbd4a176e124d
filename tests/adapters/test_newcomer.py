"""A new method needs a class, a line in `insert.ADAPTERS` and a name in `config.adapter`; no more.

Names are checked by their type in tests, so the toy takes LoRA's place in the table.
"""

import copy

import torch
from torch import nn

from esmfold_peft.adapters.base import wide
from esmfold_peft.adapters.insert import ADAPTERS, insert_adapter
from esmfold_peft.adapters.io import load_adapter, save_adapter
from esmfold_peft.adapters.low_rank import LowRankAdapter, Pair
from esmfold_peft.config import AdapterConfig
from esmfold_peft.weights.esm2_weights import weights_hash


class Toy(LowRankAdapter):
    """One A for all layers and matrices, and a B for each."""

    def __init__(self, shape, config):
        super().__init__(shape, config)
        self.a = nn.Parameter(torch.randn(shape.width, config.rank) / shape.width**0.5)
        for target in self.targets:
            self.set_factor("b", target, torch.zeros(shape.layers, config.rank, shape.width))

    def factors(self):
        return {t: Pair(wide(self.a)[None], self.scale * self.factor("b", t)) for t in self.targets}


def test_a_new_method_trains_and_is_saved_and_loaded(folding_model, tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(ADAPTERS, "lora", Toy)
    model = folding_model(tiny).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # off its start, where no atom depends on the trunk
            parameter.add_(0.1 * torch.randn_like(parameter))
    other = copy.deepcopy(model)
    aatype, mask = torch.randint(0, 20, (1, 7)), torch.ones(1, 7, dtype=torch.bool)

    def positions(model):
        return model(aatype, torch.arange(7)[None], mask, 0).positions

    before = positions(model).detach()
    lm = model.language_model
    adapter = insert_adapter(lm, AdapterConfig(kind="lora", rank=2, alpha=4.0))
    torch.testing.assert_close(positions(model), before)  # B is zero

    optimizer = torch.optim.Adam(adapter.parameters(), lr=1e-2)
    positions(model).square().mean().backward()
    optimizer.step()
    trained = positions(model).detach()
    assert (trained - before).abs().max() > 1e-3

    save_adapter(adapter, tmp_path, weights_hash(lm))
    load_adapter(other.language_model, tmp_path, weights_hash(other.language_model))
    torch.testing.assert_close(positions(other).detach(), trained)
