"""What `auto` means for a training on this machine."""

from dataclasses import replace
from typing import Any

import torch

from esmfold_peft.config import TrainConfig
from esmfold_peft.devices import choose_device, compile_obstacle
from esmfold_peft.training.engines.trainer import deepspeed_settings


def decided(config: TrainConfig) -> tuple[TrainConfig, str]:
    """Replaces `auto` in a run's settings.

    `engine.micro_batch` and the trunk's `recompute` stay auto if a test of memory will decide.

    Returns:
        The settings, and a line with what was decided and why; empty if nothing was.
    """
    engine = config.engine
    device = choose_device(engine.accelerator)
    zero = deepspeed_settings(engine)["zero_optimization"] if engine.deepspeed else {}
    stage_3 = zero.get("stage") == 3
    obstacle = _obstacle(config, device, stage_3)
    # A CPU has a compiler too, for those who ask for it.
    forced = engine.compile is True and device.type == "cpu"
    compiled = engine.compile is not False and (forced or obstacle is None)
    alone = None if compiled else "without engine.compile crops have many lengths"
    graphs = engine.cuda_graphs is not False and (obstacle or alone) is None
    line = "; ".join(
        f"engine.{name} {'on' if now else 'off, though asked for' if wanted is True else 'off'}"
        f" ({torch.cuda.get_device_name(device) if now else why})"
        for name, wanted, now, why in (
            ("compile", engine.compile, compiled, obstacle),
            ("cuda_graphs", engine.cuda_graphs, graphs, obstacle or alone),
        )
        if now is not wanted
    )
    if compiled:
        line += "; " * bool(line) + "the first steps take longer, while the model is compiled"
    config = replace(config, engine=replace(engine, compile=compiled, cuda_graphs=graphs))
    return _without_test(config) if device.type == "cpu" or stage_3 else config, line


def _without_test(config: TrainConfig) -> TrainConfig:
    """One chain at a time, recomputed, unless the settings say otherwise.

    On a CPU more chains at a time are not faster; under stage 3 no process can test its memory
    without the others.
    """
    engine, section = config.engine, config.model.section
    if engine.micro_batch == "auto":
        config = replace(config, engine=replace(engine, micro_batch=1))
    if section.recompute == "auto":
        values: dict[str, Any] = {section.name: replace(section, recompute=True)}  # pyright: ignore
        config = replace(config, model=replace(config.model, **values))
    return config


def _obstacle(config: TrainConfig, device: torch.device, stage_3: bool) -> str | None:
    """What keeps a model from being compiled, and so from being captured in CUDA graphs."""
    if device.type == "cuda" and config.model.kernels == "openfold":
        return "openfold3's own forward pass"
    if device.type == "cuda" and stage_3:
        return "ZeRO stage 3 spreads the weights"
    return compile_obstacle(device)
