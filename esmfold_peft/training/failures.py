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
            f" {config.engine.micro_batch}: {_advice(config)} ({text[:200]})"
        )
    if any(part in text for part in _LOST_PROCESS):
        return LostProcessError(
            "another process of the training was lost; when it is clear why, the same command"
            f" with --resume auto goes on from the newest checkpoint ({text[:200]})"
        )
    return None


def _advice(config: TrainConfig) -> str:
    """The two settings that help most, those first that do not change what is computed."""
    model = config.model
    advice = []
    if config.engine.micro_batch > 1:
        advice.append("a smaller engine.micro_batch (the rest is accumulated)")
    parts = (model.section.name, model.section), ("language_model", model.language_model)
    for name, part in parts:
        if not part.checkpoint:
            advice.append(f"model.{name}.checkpoint true (activations are computed again)")
    advice.append("a smaller data.crop")
    advice.append("a smaller engine.validation_tokens, if it was a validation")
    return f"{advice[0]} or {advice[1]} helps"
