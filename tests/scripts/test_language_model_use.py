"""What a model owes to its language model: nothing is lost but the meaning of its numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch

import esmfold_peft
from esmfold_peft.commands.prepare import run as prepare
from esmfold_peft.config import PrepareConfig
from esmfold_peft.datasets.store import Store

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(script, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "benchmarks")
    return script("language_model_use")


@pytest.mark.slow
def test_a_forgetful_language_model_changes_scores_and_no_number(script, tmp_path: Path):
    files = tuple((ROOT / "data" / "sh3" / "held_out").glob("4*.cif.gz"))
    prepare(PrepareConfig(files, tmp_path / "store", clusters="none", workers=1))
    store = Store(tmp_path / "store")
    model = esmfold_peft.load(ROOT / "data" / "nano" / "base", device="cpu").model
    before = script.scores(model, store, 1)
    assert len(before) == 3
    assert np.allclose(before, script.scores(model, store, 1), atol=1e-3)
    kept = {name: tensor.clone() for name, tensor in model.named_parameters()}
    script.forget(model.language_model, torch.Generator().manual_seed(0))
    for name, tensor in model.named_parameters():
        if name.startswith("language_model."):
            assert torch.equal(tensor.flatten().sort().values, kept[name].flatten().sort().values)
        else:
            assert torch.equal(tensor, kept[name])
    assert np.abs(before - script.scores(model, store, 1)).max() > 0.01
