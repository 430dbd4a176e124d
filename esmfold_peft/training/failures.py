"""What a person can do about errors that come from below."""

from esmfold_peft.config import TrainConfig
from esmfold_peft.devices import is_out_of_memory
from esmfold_peft.errors import LostProcessError, UserError

_LOST_PROCESS = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe"),
    *("remote process exited", "NCCL communicator was aborted"),
)


def explained(error: RuntimeError, config: TrainConfig) -> UserError | None:
    """The same error with what helps against it; None for one that is a fault of the program.

    Args:
        error: what ended a training.
        config: the run's settings.
    """
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        return UserError(
            f"not enough memory for data.crop {config.data.crop} and engine.micro_batch"
            f" {config.engine.micro_batch}: {_advice(config, tried=False)} ({text[:200]})"
        )
    if any(part in text for part in _LOST_PROCESS):
        return LostProcessError(
            "another process of the training was lost; when it is clear why, the same command"
            f" with --resume auto goes on from the newest checkpoint ({text[:200]})"
        )
    return None


def nothing_fits(config: TrainConfig) -> UserError:
    """What helps where no test of memory has found a number of chains that fits.

    Args:
        config: the run's settings.
    """
    micro_batch = config.engine.micro_batch
    chains = 1 if micro_batch == "auto" else micro_batch
    return UserError(
        f"not enough memory for data.crop {config.data.crop} and engine.micro_batch {chains}:"
        f" {_advice(config, tried=True)}"
    )


def _advice(config: TrainConfig, *, tried: bool) -> str:
    """The two settings that help most, those first that do not change what is computed.

    Args:
        config: the run's settings.
        tried: all that is auto has been tried.
    """
    model = config.model
    advice = []
    if config.engine.micro_batch == "auto":
        if not tried:
            advice.append("a number for engine.micro_batch below the one in plan.json")
    elif config.engine.micro_batch > 1:
        advice.append("a smaller engine.micro_batch (gradients are added up)")
    parts = (model.section.name, model.section), ("language_model", model.language_model)
    for name, part in parts:
        if part.checkpoint is False:
            advice.append(f"model.{name}.checkpoint true (activations are computed again)")
    advice.append("a smaller data.crop")
    if not tried:
        advice.append("a smaller engine.validation_tokens, if it was a validation")
    return f"{' or '.join(advice[:2])} helps"
