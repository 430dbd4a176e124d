"""Decides what trains in the language model: nothing, everything, or an adapter."""

from esmfold_peft.adapters.base import AdaptedModel, Adapter, AttentionShape
from esmfold_peft.adapters.bitfit import BitFit
from esmfold_peft.adapters.dora import DoRA
from esmfold_peft.adapters.fact_tk import FacTTK
from esmfold_peft.adapters.fact_tt import FacTTT
from esmfold_peft.adapters.ia3 import IA3
from esmfold_peft.adapters.lora import LoRA
from esmfold_peft.adapters.lora_fa import LoRAFA
from esmfold_peft.adapters.loretta_adp import LoReTTAAdp
from esmfold_peft.adapters.loretta_rep import LoReTTARep
from esmfold_peft.adapters.lorta import LoRTA
from esmfold_peft.adapters.lotr import LoTR
from esmfold_peft.adapters.nola import NOLA
from esmfold_peft.adapters.tt_lora import TTLoRA
from esmfold_peft.adapters.vera import VeRA
from esmfold_peft.config import AdapterConfig

ADAPTERS: dict[str, type[Adapter]] = {
    "lora": LoRA,
    "lora_fa": LoRAFA,
    "dora": DoRA,
    "lorta": LoRTA,
    "lotr": LoTR,
    "fact_tt": FacTTT,
    "fact_tk": FacTTK,
    "loretta_rep": LoReTTARep,
    "loretta_adp": LoReTTAAdp,
    "tt_lora": TTLoRA,
    "vera": VeRA,
    "nola": NOLA,
    "ia3": IA3,
    "bitfit": BitFit,
}
"""Adapter classes by `AdapterConfig.kind`."""


def build_adapter(shape: AttentionShape, config: AdapterConfig) -> Adapter:
    """A fresh adapter for a language model of these sizes.

    Args:
        shape: sizes of the language model.
        config: of any kind but "none" and "full".

    Raises:
        UserError: the settings make no adapter.
    """
    adapter = ADAPTERS[config.kind](shape, config)
    adapter.freeze_factors()
    return adapter


def insert_adapter(lm: AdaptedModel, config: AdapterConfig) -> Adapter | None:
    """Freezes or frees the language model's weights and attaches a fresh adapter.

    A fresh adapter changes no output, unless its method's published start (init: paper) does. It
    is drawn on the CPU from the global generator, so that it is the same on every device.

    Args:
        lm: the language model; it must carry no adapter.
        config: "none" freezes all weights, "full" frees them all, other kinds freeze them and
            attach an adapter.

    Returns:
        The adapter, which is `lm.adapter` too, or None.

    Raises:
        UserError: the settings make no adapter.
        ValueError: the model has an adapter already.
    """
    if config.kind in ("none", "full"):
        require_unadapted(lm)
        for _, parameter in lm.base_parameters():
            parameter.requires_grad_(config.kind == "full")
        return None
    return attach_adapter(lm, build_adapter(lm.shape, config), fresh=True)


def attach_adapter(lm: AdaptedModel, adapter: Adapter, *, fresh: bool) -> Adapter:
    """Freezes the language model's weights and lets it carry an adapter.

    Args:
        lm: the language model; it must carry no adapter.
        adapter: for a language model of its sizes.
        fresh: the adapter is new; otherwise its factors have been read and stay as they are.

    Raises:
        ValueError: the model has an adapter already.
    """
    require_unadapted(lm)
    adapter.settle(lm, fresh=fresh)
    for _, parameter in lm.base_parameters():
        parameter.requires_grad_(False)
    lm.adapter = adapter.to(lm.weight(0, "query").device)
    return adapter


def require_unadapted(lm: AdaptedModel) -> None:
    """Refuses a second adapter.

    Raises:
        ValueError: the model has an adapter already.
    """
    if lm.adapter is not None:
        raise ValueError("the language model has an adapter already")


def trainable_adapter_parameters(lm: AdaptedModel) -> int:
    """Numbers that train in the language model: the adapter's, or with "full" its own."""
    own = [parameter for _, parameter in lm.base_parameters()]
    added = [] if lm.adapter is None else list(lm.adapter.parameters())
    return sum(parameter.numel() for parameter in own + added if parameter.requires_grad)
