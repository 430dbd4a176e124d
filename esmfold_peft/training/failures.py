"""Errors of PyTorch that a person can do something about, and what helps."""

from esmfold_peft.config import TrainConfig
from esmfold_peft.devices import is_out_of_memory
from esmfold_peft.errors import LostProcessError, UserError

_LOST_PROCESS = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe"),
    *("remote process exited", "NCCL communicator was aborted"),
)


def explained(error: RuntimeError, config: TrainConfig) -> UserError | None:
    """What ended a training, with what helps against it; None for a fault of the program."""
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        advice = _no_memory(config, config.engine.micro_batch, tried=False)
        return UserError(f"{advice} ({text[:200]})")
    if any(part in text for part in _LOST_PROCESS):
        return LostProcessError(
            "another process of the training was lost; find out why, then give the same command"
            f" with --resume auto to resume from the newest checkpoint ({text[:200]})"
        )
    return None


def nothing_fits(config: TrainConfig) -> UserError:
    """What helps where no test of memory has found a number of chains that fits."""
    micro_batch = config.engine.micro_batch
    return UserError(_no_memory(config, 1 if micro_batch == "auto" else micro_batch, tried=True))


def _no_memory(config: TrainConfig, chains: int | str, *, tried: bool) -> str:
    """Names the two settings that help most, those first that do not change what is computed.

    If `tried`, the memory test has tried all that is auto.
    """
    model = config.model
    advice = []
    if config.engine.micro_batch == "auto":
        if not tried:
            advice.append("a number for engine.micro_batch below the one in plan.json")
    elif config.engine.micro_batch > 1:
        advice.append("a smaller engine.micro_batch (gradients are added up)")
    for name, part in (model.section.name, model.section), ("language_model", model.language_model):
        if part.recompute is False:
            advice.append(f"model.{name}.recompute true (saves memory)")
    advice.append("a smaller data.crop")
    if not tried:
        advice.append("a smaller engine.validation_tokens, if it was a validation")
    return (
        f"not enough memory for data.crop {config.data.crop} and engine.micro_batch {chains}:"
        f" {' or '.join(advice[:2])} helps"
    )
