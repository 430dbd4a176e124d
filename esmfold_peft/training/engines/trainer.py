"""Lightning's Trainer for any engine, from one source of settings."""

import json
import os
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.precision import DeepSpeedPrecision
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, Strategy

from esmfold_peft.config import EngineConfig, TrainConfig
from esmfold_peft.devices import choose_device
from esmfold_peft.errors import UserError
from esmfold_peft.runs.world import launched_world
from esmfold_peft.training.engines.launch import (
    chains_of_device,
    cluster_environment,
    devices_and_nodes,
    require_gpus,
)


def build_trainer(
    config: TrainConfig, loggers: Sequence[Logger] = (), start: int = 0
) -> pl.Trainer:
    """The Trainer of a run of which `start` optimizer steps are done.

    Lightning counts only the steps of this process. It neither validates nor saves: a callback
    does, so that a run can resume with another engine. Raises UserError if the settings do not fit
    each other, the launcher or the machine.
    """
    world = launched_world(os.environ)
    engine = config.engine
    devices, nodes = devices_and_nodes(engine, world)
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
        logger=[*loggers],
    )
    # Lightning's processes ask each other before every batch whether a SIGTERM has come, and wait
    # for their GPUs. Ours ask in the step's summary.
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


_SET_BY_CONFIG = "gradient_clipping gradient_accumulation_steps train_batch_size bf16 fp16".split()
# DeepSpeed's settings under which this project cannot save a training: they keep parameters or
# moments in other places or forms, or take steps along a NaN.
_UNREADABLE = (
    "compute_grad_norm mics_shard_size round_robin_gradients zenflow zero_hpz_partition_size"
    " zero_quantized_nontrainable_weights zero_quantized_weights"
).split()


def _deepspeed(engine: EngineConfig, *, chains: int, clip_norm: float) -> DeepSpeedStrategy:
    """DeepSpeed for steps of one backward pass, before which micro-batches are added up.

    Each device has `chains` in a step; a `clip_norm` of 0 does not clip.
    """
    settings = deepspeed_settings(engine)
    settings |= {"train_micro_batch_size_per_gpu": chains, "gradient_clipping": clip_norm}
    # Adam is torch's, also where ZeRO offloads: DeepSpeed's own would have to be compiled first.
    settings |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    if _on_gpu(engine):
        return DeepSpeedStrategy(config=settings)
    return _CPUDeepSpeedStrategy(config=settings, process_group_backend="gloo")


def deepspeed_settings(engine: EngineConfig) -> dict[str, Any]:
    """Reads the file that `engine.deepspeed` names.

    Refuses what the run's config sets, and settings under which no training can be saved.
    """
    path = engine.deepspeed
    assert path is not None
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"engine.deepspeed: {path} is not a JSON file ({error})") from error
    zero = settings.get("zero_optimization") if isinstance(settings, dict) else None
    # DeepSpeed ignores keys that it does not know: a misspelt one would train without ZeRO.
    if not isinstance(zero, dict) or zero.get("stage") not in (0, 1, 2, 3):
        raise UserError(f"{path}: zero_optimization.stage must be 0, 1, 2 or 3")
    for key in _UNREADABLE:
        if key in zero:
            raise UserError(
                f"{path}: zero_optimization.{key}: no training can be saved under it; remove it"
            )
    for key in ("offload_optimizer", "offload_param"):
        target = zero.get(key) or {}
        if not isinstance(target, dict) or target.get("device", "none") not in ("none", "cpu"):
            raise UserError(f'{path}: zero_optimization.{key}.device must be "cpu" or "none"')
    for key in _SET_BY_CONFIG:
        if key in settings:
            raise UserError(f"{path}: {key} is set by the run's config; remove it from this file")
    for name in ("compile", "cuda_graphs"):
        if getattr(engine, name) is True and zero["stage"] == 3:
            raise UserError(f"engine.{name}: not with ZeRO stage 3 ({path}); set it to false")
    return settings


def _on_gpu(engine: EngineConfig) -> bool:
    return engine.accelerator != "cpu" and torch.cuda.is_available()


class _Untouched(DeepSpeedPrecision):
    """Leaves batches as they are: Lightning cannot cast a frozen dataclass, and need not."""

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
