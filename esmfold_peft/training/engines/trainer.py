"""Lightning's Trainer for any engine, from one source of settings."""

import json
import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.precision import DeepSpeedPrecision
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, Strategy

from esmfold_peft.config import EngineConfig, TrainConfig
from esmfold_peft.devices import choose_device
from esmfold_peft.errors import UserError
from esmfold_peft.runs.world import launched_world
from esmfold_peft.training.engines.launch import (
    cluster_environment,
    require_gpus,
    resolved_engine,
)
from esmfold_peft.training.plan import chains_of_device


def build_trainer(
    config: TrainConfig, callbacks: list[Callback], loggers: list[Logger], start: int = 0
) -> pl.Trainer:
    """The Trainer of a run.

    Lightning counts the steps of this process alone, and neither validates nor saves: a callback
    does, so that a run can go on with other engines.

    Args:
        config: the run's settings.
        callbacks: what happens between steps.
        loggers: what losses and scores are written to.
        start: optimizer steps done before.

    Raises:
        UserError: the settings do not fit each other, the launcher or the machine.
    """
    world = launched_world(os.environ)
    engine = resolved_engine(config.engine, world)
    devices, nodes = engine.devices, engine.nodes
    assert devices is not None
    assert nodes is not None
    chains = chains_of_device(engine)
    choose_device(engine.accelerator)
    if _on_gpu(engine):
        require_gpus(devices, torch.cuda.device_count(), world)
    # bf16 is an autocast inside the model: the engine must not cast coordinates.
    untouched = [_Untouched("32-true")] if engine.deepspeed else []
    trainer = pl.Trainer(
        accelerator=engine.accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=_strategy(config, devices * nodes, chains),
        precision=None if engine.deepspeed else "32-true",
        plugins=[cluster_environment(world), *untouched],
        max_steps=max(engine.steps - start, 0),
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        default_root_dir=config.run,  # where Lightning looks for checkpoints of its own
        logger=loggers,
        callbacks=callbacks,
    )
    # Lightning's processes tell each other of a SIGTERM before every batch, and each waits for its
    # GPU to hear it. Ours do so with the step's summary.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    # Its handler sends messages wherever the signal finds it, and hangs if it comes to one process.
    trainer._signal_connector.register_signal_handlers = lambda: None
    return trainer


def _strategy(config: TrainConfig, processes: int, chains: int) -> Strategy | str:
    engine = config.engine
    if engine.deepspeed is not None:
        return _deepspeed(engine, chains=chains, clip_norm=config.optimizer.clip_norm)
    if processes > 1:
        backend = "nccl" if _on_gpu(engine) else "gloo"
        return DDPStrategy(broadcast_buffers=False, process_group_backend=backend)
    return "auto"


# Of DeepSpeed's settings those that this project could not save a training under, because they
# keep parameters or moments in other places or forms, or take steps along a NaN.
_UNREADABLE = (
    "compute_grad_norm",
    "mics_shard_size",
    "round_robin_gradients",
    "zenflow",
    "zero_hpz_partition_size",
    "zero_quantized_nontrainable_weights",
    "zero_quantized_weights",
)


def _deepspeed(engine: EngineConfig, *, chains: int, clip_norm: float) -> DeepSpeedStrategy:
    """DeepSpeed for steps of one backward pass; we add up micro-batches before it.

    Args:
        engine: its `deepspeed` names the file of its settings.
        chains: of a device in a step.
        clip_norm: largest norm of the gradient; 0 does not clip.
    """
    settings = deepspeed_settings(engine)
    settings |= {"train_micro_batch_size_per_gpu": chains, "gradient_clipping": clip_norm}
    # Adam is torch's, also where ZeRO offloads: DeepSpeed's own would have to be compiled first.
    settings |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    if _on_gpu(engine):
        return DeepSpeedStrategy(config=settings)
    return _CPUDeepSpeedStrategy(config=settings, process_group_backend="gloo")


def deepspeed_settings(engine: EngineConfig) -> dict[str, Any]:
    """Reads the file of DeepSpeed's settings.

    Args:
        engine: its `deepspeed` names the file.

    Raises:
        UserError: it is missing, or has what no training could be saved under or the run sets.
    """
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
    for name in ("compile", "cuda_graphs"):
        if getattr(engine, name) is True and settings["zero_optimization"]["stage"] == 3:
            raise UserError(f"engine.{name}: not with weights that {path} spreads (stage 3)")
    return settings


def _read_deepspeed(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"engine.deepspeed: {path} is not a JSON file ({error})") from error
    zero = settings.get("zero_optimization") if isinstance(settings, dict) else None
    # DeepSpeed ignores keys that it does not know: a misspelt one would train without ZeRO.
    if not isinstance(zero, dict) or zero.get("stage") not in (0, 1, 2, 3):
        raise UserError(f"{path}: zero_optimization.stage must be 0, 1, 2 or 3")
    _check_zero(path, zero)
    return settings


def _check_zero(path: Path, zero: dict[str, Any]) -> None:
    for key in _UNREADABLE:
        if key in zero:
            raise UserError(f"{path}: zero_optimization.{key}: no training can be saved under it")
    for key in ("offload_optimizer", "offload_param"):
        target = zero.get(key) or {}
        if not isinstance(target, dict) or target.get("device", "none") not in ("none", "cpu"):
            raise UserError(f'{path}: zero_optimization.{key}.device must be "cpu" or "none"')


def _on_gpu(engine: EngineConfig) -> bool:
    return engine.accelerator != "cpu" and torch.cuda.is_available()


class _Untouched(DeepSpeedPrecision):
    """Leaves batches and losses as they are.

    Lightning's casting of a batch cannot take a frozen dataclass, and ours needs no cast.
    """

    def convert_input(self, data: Any) -> Any:
        return data


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
