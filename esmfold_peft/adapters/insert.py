"""Decides what trains in the language model: nothing, everything, or an adapter."""

from esmfold_peft.adapters.base import AdaptedModel, Adapter
from esmfold_peft.adapters.lora import LoRA
from esmfold_peft.adapters.lorta import LoRTA
from esmfold_peft.config import AdapterConfig

ADAPTERS: dict[str, type[Adapter]] = {"lora": LoRA, "lorta": LoRTA}
"""Adapter classes by `AdapterConfig.kind`."""


def insert_adapter(lm: AdaptedModel, config: AdapterConfig) -> Adapter | None:
    """Freezes or frees the language model's weights and attaches a fresh adapter.

    A fresh adapter changes no output. It is drawn on the CPU from the global generator, so that it
    is the same on every device.

    Args:
        lm: the language model; it must carry no adapter.
        config: "none" freezes all weights, "full" frees them all, other kinds freeze them and
            attach an adapter.

    Returns:
        The adapter, which is `lm.adapter` too, or None.

    Raises:
        UserError: rank, alpha or targets make no adapter.
        ValueError: the model has an adapter already.
    """
    if lm.adapter is not None:
        raise ValueError("the language model has an adapter already")
    for _, parameter in lm.base_parameters():
        parameter.requires_grad_(config.kind == "full")
    if config.kind in ("none", "full"):
        return None
    adapter = ADAPTERS[config.kind](lm.shape, config)
    lm.adapter = adapter.to(lm.projection(0, "query").weight.device)
    return lm.adapter


def trainable_adapter_parameters(lm: AdaptedModel) -> int:
    """Numbers that train in the language model: the adapter's, or with "full" its own."""
    own = [parameter for _, parameter in lm.base_parameters()]
    added = [] if lm.adapter is None else list(lm.adapter.parameters())
    return sum(parameter.numel() for parameter in own + added if parameter.requires_grad)
