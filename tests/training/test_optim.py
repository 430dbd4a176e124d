"""Learning rate and groups."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from esmfold_peft.adapters.insert import ADAPTERS
from esmfold_peft.config import (
    AdapterConfig,
    DataConfig,
    EvoformerConfig,
    LanguageModelConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from esmfold_peft.runs.build import build_model
from esmfold_peft.training.optim import build_optimizer, learning_rate_factor


def test_the_warm_up_is_linear_from_zero():
    config = OptimizerConfig(warmup_steps=1000)
    factors = [learning_rate_factor(step, config) for step in (0, 1, 500, 1000, 49_999)]
    assert factors == [0.0, 0.001, 0.5, 1.0, 1.0]


def test_openfold_decays_again_and_again_and_alphafold_once():
    config = OptimizerConfig(lr=1e-3)
    assert config.schedule == "openfold"
    assert learning_rate_factor(50_000, config) == pytest.approx(0.95)
    # The paper's run ends at 850,000 steps: 4.4e-4 against 9.5e-4.
    assert 1e-3 * learning_rate_factor(849_999, config) == pytest.approx(4.4e-4, rel=0.01)
    once = replace(config, schedule="alphafold")
    assert 1e-3 * learning_rate_factor(849_999, once) == pytest.approx(9.5e-4)
    assert learning_rate_factor(849_999, replace(config, schedule="constant")) == 1


def test_the_linear_schedule_falls_from_the_warm_up_to_zero():
    config = OptimizerConfig(schedule="linear", warmup_steps=100, decay_steps=1100)
    factors = [learning_rate_factor(step, config) for step in (50, 100, 600, 1100, 2000)]
    assert factors == [0.5, 1, 0.5, 0, 0]


def test_no_warm_up_starts_at_the_full_rate():
    assert learning_rate_factor(0, OptimizerConfig(warmup_steps=0)) == 1


@pytest.mark.parametrize(
    ("adapter", "rates"),
    [
        (AdapterConfig(kind="none"), {}),
        (AdapterConfig(kind="lora", rank=2), {"a": 2e-3, "b": 2e-3}),
        # LoRA+ (Hayou et al. 2024): B learns 16 times faster.
        (AdapterConfig(kind="lora", lr_factors={"b": 16.0}), {"a": 2e-3, "b": 3.2e-2}),
        (
            AdapterConfig(kind="lorta", lr_factors={"c_l": 0.5, "b": 4.0}, freeze=("a",)),
            {"b": 8e-3, "c_h": 2e-3, "c_l": 1e-3, "c_m": 2e-3},
        ),
    ],
)
def test_every_factor_is_in_the_optimizer_once_at_its_rate(adapter, rates, tmp_path: Path):
    model, _ = build_model(_config(adapter, tmp_path))
    optimizer, _ = build_optimizer(model, OptimizerConfig(lr=1e-3, lr_adapter=2.0, warmup_steps=0))
    found = [(id(p), group["lr"]) for group in optimizer.param_groups for p in group["params"]]
    assert len(dict(found)) == len(found)
    assert dict(found).keys() == {id(p) for p in model.parameters() if p.requires_grad}
    own = model.language_model.adapter
    for name, members in ({} if own is None else own.factor_parameters()).items():
        for parameter in members:
            assert dict(found).get(id(parameter)) == pytest.approx(rates.get(name))


@pytest.mark.parametrize(
    ("kind", "own", "expected"),
    [("lorta", 1e-6, 1e-6), ("lorta", None, 1e-4), ("full", 1e-6, 1e-4)],
)
def test_an_adapter_alone_has_its_own_epsilon(
    kind: Any, own: float | None, expected: float, tmp_path: Path
):
    adapter = AdapterConfig(kind=kind, lr_factors={"b": 16.0} if kind == "lorta" else {})
    model, _ = build_model(_config(adapter, tmp_path))
    optimizer, _ = build_optimizer(model, OptimizerConfig(eps=1e-4, eps_adapter=own))
    found = {(group["name"], group["eps"]) for group in optimizer.param_groups}
    assert found == {("adapter", expected), ("trunk", 1e-4), ("head", 1e-4)}


def test_the_size_of_the_loss_does_not_matter_to_an_adapter(tmp_path: Path):
    """A clipped gradient of 25 M numbers has small ones, whatever the adapter."""

    def path(scale: float, eps: float | None) -> torch.Tensor:
        torch.manual_seed(0)
        model, _ = build_model(_config(AdapterConfig(kind="lorta", rank=8), tmp_path))
        lm = model.language_model
        settings = OptimizerConfig(warmup_steps=0, eps_adapter=eps)
        optimizer, _ = build_optimizer(model, settings)
        aatype = torch.arange(20)[None]
        wanted = torch.randn(1, 20, 3, 16, generator=torch.Generator().manual_seed(1))
        for _ in range(20):
            optimizer.zero_grad()
            hidden = lm(aatype, torch.ones_like(aatype, dtype=torch.bool))
            (scale * (hidden - wanted).square().mean()).backward()
            optimizer.step()
        assert lm.adapter is not None
        return torch.cat([p.detach().flatten() for p in lm.adapter.parameters()])

    whole = path(1.0, 1e-15)
    assert (path(2.0**-10, 1e-15) - whole).abs().max() < 1e-4
    assert (path(2.0**-10, 1e-5) - whole).abs().max() > 0.01


@pytest.mark.parametrize("kind", sorted(ADAPTERS))
def test_the_optimizer_has_every_trainable_tensor_of_every_method_once(kind, tmp_path: Path):
    adapter = AdapterConfig(kind=kind, rank=2, targets=("query", "output"))
    model, _ = build_model(_config(adapter, tmp_path))
    optimizer, _ = build_optimizer(model, OptimizerConfig())
    members = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(set(members)) == len(members)
    assert set(members) == {id(p) for p in model.parameters() if p.requires_grad}


def _config(adapter: AdapterConfig, folder: Path) -> TrainConfig:
    """A run of a tiny model."""
    language_model = LanguageModelConfig("custom", "random", layers=2, width=16, heads=2)
    return TrainConfig(
        run=folder,
        data=DataConfig(train=folder),
        model=ModelConfig(language_model=language_model, evoformer=EvoformerConfig(blocks=1)),
        adapter=adapter,
    )
