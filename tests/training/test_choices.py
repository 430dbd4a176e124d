"""What auto means, by the machine and the other settings."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from esmfold_peft.config import TrainConfig
from esmfold_peft.config.parsing import config_text, read_config
from esmfold_peft.errors import UserError
from esmfold_peft.training.beginning import changed_settings
from esmfold_peft.training.choices import decided
from esmfold_peft.training.engines.trainer import deepspeed_settings
from tests.tiny import TINY

AUTO = replace(
    TINY, model=replace(TINY.model, evoformer=replace(TINY.model.evoformer, recompute="auto"))
)


def said(config: TrainConfig) -> tuple[tuple, str]:
    """Compile, CUDA graphs, micro-batch and recompute as decided, and the line about it."""
    found, line = decided(config)
    engine, recompute = found.engine, found.model.evoformer.recompute
    return (engine.compile, engine.cuda_graphs, engine.micro_batch, recompute), line


def of_engine(config: TrainConfig, **settings: object) -> TrainConfig:
    return replace(config, engine=replace(config.engine, **settings))  # pyright: ignore


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that says it has a GPU with Triton."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Accelerator 1")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("esmfold_peft.devices.find_spec", lambda name: name)


def test_on_a_cpu_nothing_is_compiled_and_one_chain_is_computed_at_a_time():
    cpu = of_engine(AUTO, accelerator="cpu")
    assert said(cpu) == (
        (False, False, 1, True),
        "engine.compile off (no GPU); engine.cuda_graphs off (no GPU)",
    )
    # What was asked for stays, but CUDA graphs need the GPU.
    asked = of_engine(replace(cpu, model=TINY.model), compile=True, cuda_graphs=True, micro_batch=4)
    slow = "the first steps take longer, while the model is compiled"
    line = f"engine.cuda_graphs off, though asked for (no GPU); {slow}"
    assert said(asked) == ((True, False, 4, False), line)
    assert said(of_engine(cpu, compile=False, cuda_graphs=False))[1] == ""


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_a_model_is_compiled_and_a_trial_tells_the_rest(monkeypatch: pytest.MonkeyPatch):
    slow = "the first steps take longer, while the model is compiled"
    line = f"engine.compile on (Accelerator 1); engine.cuda_graphs on (Accelerator 1); {slow}"
    assert said(AUTO) == ((True, True, "auto", "auto"), line)
    line = f"engine.compile on (Accelerator 1); {slow}"
    fixed = of_engine(AUTO, cuda_graphs=False, micro_batch=2)
    assert said(fixed) == ((True, False, 2, "auto"), line)
    line = "engine.cuda_graphs off (without engine.compile crops have many lengths)"
    assert said(of_engine(AUTO, compile=False)) == ((False, False, "auto", "auto"), line)
    exact = replace(AUTO, model=replace(AUTO.model, kernels="openfold"))
    why = "off (openfold3's own forward pass)"
    line = f"engine.compile {why}; engine.cuda_graphs {why}"
    assert said(exact) == ((False, False, "auto", "auto"), line)
    monkeypatch.setattr("esmfold_peft.devices.find_spec", lambda name: None)
    why = "off, though asked for (Triton is not installed)"
    line = f"engine.compile {why}; engine.cuda_graphs {why}"
    asked = of_engine(AUTO, compile=True, cuda_graphs=True)
    assert said(asked) == ((False, False, "auto", "auto"), line)


@pytest.mark.usefixtures("gpu")
def test_stage_3_has_no_trial_and_is_not_compiled(tmp_path: Path):
    path = tmp_path / "zero3.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    spread = of_engine(AUTO, deepspeed=path)
    why = "off (ZeRO stage 3 spreads the weights)"
    line = f"engine.compile {why}; engine.cuda_graphs {why}"
    assert said(spread) == ((False, False, 1, True), line)
    for name in ("compile", "cuda_graphs"):
        with pytest.raises(UserError, match=rf"^engine\.{name}: .*stage 3 \(.*zero3.json\)"):
            deepspeed_settings(of_engine(spread, **{name: True}).engine)


def test_a_run_of_before_auto_is_read_and_may_go_on_with_it(tmp_path: Path):
    before = of_engine(TINY, micro_batch=4, compile=True)
    text = config_text(before)
    assert "  cuda_graphs: auto\n" in text
    (tmp_path / "config.yaml").write_text(text.replace("  cuda_graphs: auto\n", ""))
    found = read_config(tmp_path / "config.yaml", TrainConfig)
    assert found == before
    assert changed_settings(found, AUTO) == []
