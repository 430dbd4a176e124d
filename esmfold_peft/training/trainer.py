"""Lightning's Trainer for any engine, from one source of settings."""

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins.precision import DeepSpeedPrecision
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, Strategy

from esmfold_peft.config import EngineConfig, TrainConfig
from esmfold_peft.devices import choose_device
from esmfold_peft.errors import UserError
from esmfold_peft.training.accumulation import accumulation
from esmfold_peft.training.recount import Recount


def build_trainer(config: TrainConfig, callbacks: list[Callback]) -> pl.Trainer:
    """The Trainer of a run, which writes metrics.csv into the run's folder.

    Args:
        config: the run's settings.
        callbacks: progress and saving.
    """
    engine = config.engine
    micro_steps = accumulation(engine)
    choose_device(engine.accelerator)
    if _on_gpu(engine) and engine.devices > torch.cuda.device_count():
        raise UserError(
            f"engine.devices: {engine.devices} asked for, {torch.cuda.device_count()} there"
        )
    return pl.Trainer(
        accelerator=engine.accelerator,
        devices=engine.devices,
        num_nodes=engine.nodes,
        strategy=_strategy(config),
        # bf16 is an autocast inside the model: the engine must not cast coordinates.
        precision=None if engine.deepspeed else "32-true",
        plugins=[_Untouched("32-true")] if engine.deepspeed else None,
        max_steps=engine.steps,
        accumulate_grad_batches=micro_steps,
        gradient_clip_val=config.optimizer.clip_norm or None,
        val_check_interval=engine.validate_every * micro_steps,
        check_val_every_n_epoch=None,
        limit_val_batches=None if config.data.validation else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=min(engine.log_every, max(engine.steps, 1)),
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=CSVLogger(config.run, name="", version="", flush_logs_every_n_steps=1),
        callbacks=[*callbacks, Recount()],
    )


def _strategy(config: TrainConfig) -> Strategy | str:
    engine = config.engine
    if engine.deepspeed is not None:
        return _deepspeed(engine)
    if engine.devices * engine.nodes > 1:
        backend = "nccl" if _on_gpu(engine) else "gloo"
        # Heads whose loss has no weight are frozen. Without these two losses parts of the structure
        # module get no gradient either, which DDP must be told to expect.
        idle = 0 in (config.loss.weights.fape, config.loss.weights.chi)
        return DDPStrategy(
            broadcast_buffers=False, process_group_backend=backend, find_unused_parameters=idle
        )
    return "auto"


def _deepspeed(engine: EngineConfig) -> DeepSpeedStrategy:
    path = engine.deepspeed
    assert path is not None
    settings = _read_deepspeed(path)
    for key in (
        "gradient_clipping",
        "gradient_accumulation_steps",
        "train_batch_size",
        "bf16",
        "fp16",
    ):
        if key in settings:
            raise UserError(f"{path}: {key} is set by the run's config; take it out of this file")
    if engine.compile and settings["zero_optimization"]["stage"] == 3:
        raise UserError(f"engine.compile: it cannot read the weights that {path} spreads (stage 3)")
    settings["train_micro_batch_size_per_gpu"] = engine.micro_batch
    if _on_gpu(engine):
        return DeepSpeedStrategy(config=settings)
    return _CPUDeepSpeedStrategy(config=settings, process_group_backend="gloo")


def _read_deepspeed(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"engine.deepspeed: {path} is not a JSON file ({error})") from error
    zero = settings.get("zero_optimization") if isinstance(settings, dict) else None
    # DeepSpeed ignores keys that it does not know: a misspelt one would train without ZeRO.
    if not isinstance(zero, dict) or zero.get("stage") not in (0, 1, 2, 3):
        raise UserError(f"{path}: zero_optimization.stage must be 0, 1, 2 or 3")
    return settings


def _on_gpu(engine: EngineConfig) -> bool:
    return engine.accelerator != "cpu" and torch.cuda.is_available()


class _Untouched(DeepSpeedPrecision):
    """Leaves batches and losses as they are.

    Lightning's casting of a batch cannot take a frozen dataclass, and ours needs no cast.
    """

    def convert_input(self, data: Any) -> Any:
        return data

    def backward(
        self, tensor: torch.Tensor, model: Any, optimizer: Any, *args: Any, **kwargs: Any
    ) -> None:
        # Lightning has divided the loss by the accumulation; DeepSpeed would do it once more.
        kwargs["scale_wrt_gas"] = False
        super().backward(tensor, model, optimizer, *args, **kwargs)


class _CPUDeepSpeedStrategy(DeepSpeedStrategy):
    """DeepSpeed without a GPU, which Lightning refuses: for tests of the sharded engine."""

    def __init__(self, **arguments: object) -> None:
        import deepspeed.ops

        # Compiling this operator takes over a minute, and it aborts some processes at their end.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        super().__init__(**arguments)  # pyright: ignore[reportArgumentType]

    def setup_environment(self) -> None:
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", 0)
