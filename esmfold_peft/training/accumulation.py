"""How a global batch is made up."""

from esmfold_peft.config import EngineConfig
from esmfold_peft.errors import UserError


def accumulation(engine: EngineConfig) -> int:
    """Micro-batches that each device adds up for one optimizer step.

    Raises:
        UserError: the batch does not divide by what the devices hold at a time.
    """
    together = engine.devices * engine.nodes * engine.micro_batch
    if engine.batch_size % together:
        raise UserError(
            f"engine.batch_size: {engine.batch_size} does not divide by"
            f" devices x nodes x micro_batch ="
            f" {engine.devices} x {engine.nodes} x {engine.micro_batch} = {together}"
        )
    return engine.batch_size // together
