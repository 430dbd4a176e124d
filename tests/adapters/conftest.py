"""A tiny language model, chains for it, and adapters that are no longer at their start."""

import pytest
import torch

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.insert import insert_adapter
from esmfold_peft.config import AdapterConfig
from esmfold_peft.model.language_model import LanguageModel

SHAPE = AttentionShape(layers=3, width=40, heads=4)


@pytest.fixture
def chains():
    """Two chains of 9 and 6 random residues."""
    aatype = torch.randint(0, 20, (2, 9), generator=torch.Generator().manual_seed(1))
    return aatype, torch.arange(9) < torch.tensor([[9], [6]])


@pytest.fixture
def make_lm():
    """Builds a language model with an adapter; `trained` moves all its factors off their start."""

    def make(kind="lorta", *, trained=True, seed=4, **settings):
        lm = LanguageModel.random(SHAPE, seed=3)
        torch.manual_seed(seed)
        adapter = insert_adapter(lm, AdapterConfig(kind=kind, **settings))
        if trained and adapter is not None:
            with torch.no_grad():
                for factor in adapter.parameters():
                    factor.add_(0.3 * torch.randn_like(factor))
        return lm

    return make
