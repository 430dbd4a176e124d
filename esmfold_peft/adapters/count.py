"""How many numbers an adapter trains; nothing is allocated for them."""

from dataclasses import dataclass

import torch

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.insert import build_adapter
from esmfold_peft.config import AdapterConfig


@dataclass(frozen=True)
class Count:
    """Numbers of one adapter.

    Attributes:
        trainable: those that train.
        frozen: those that were drawn once and are kept with the adapter, such as VeRA's
            projections.
    """

    trainable: int
    frozen: int


def count(shape: AttentionShape, config: AdapterConfig) -> Count:
    """Counts the numbers of an adapter by building it without memory.

    Args:
        shape: sizes of the language model.
        config: of any kind but "none" and "full", without `freeze`.

    Raises:
        UserError: the settings make no adapter.
    """
    with torch.device("meta"):
        adapter = build_adapter(shape, config)
    trainable = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
    saved = sum(tensor.numel() for tensor in adapter.state_dict().values())
    return Count(trainable, saved - trainable)
