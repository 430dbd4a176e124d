"""How a global batch is made up."""

import os

from esmfold_peft.config import EngineConfig
from esmfold_peft.errors import UserError
from esmfold_peft.training.launch import resolved_engine
from esmfold_peft.training.world import launched_world


def accumulation(engine: EngineConfig) -> int:
    """Micro-batches that each device adds up for one optimizer step.

    Args:
        engine: settings; numbers that are null are the launcher's.

    Raises:
        UserError: the batch does not divide by what the devices hold at a time.
    """
    engine = resolved_engine(engine, launched_world(os.environ))
    assert engine.devices is not None
    assert engine.nodes is not None
    batch, together = engine.batch_size, engine.devices * engine.nodes * engine.micro_batch
    micro_batches, rest = divmod(batch, together)
    if rest:
        below = f"{batch - rest} and {batch - rest + together} do"
        raise UserError(
            f"engine.batch_size: {batch} does not divide by devices x nodes x micro_batch ="
            f" {engine.devices} x {engine.nodes} x {engine.micro_batch} = {together};"
            f" {below if micro_batches else f'{together} does'}"
        )
    return micro_batches
