"""Decides what trains in the language model: nothing, everything, or an adapter."""

from typing import NamedTuple

import torch

from esmfold_peft.adapters.base import AdaptedModel, Adapter, AttentionShape
from esmfold_peft.adapters.bitfit import BitFit
from esmfold_peft.adapters.dora import DoRA
from esmfold_peft.adapters.fact_tk import FacTTK
from esmfold_peft.adapters.fact_tt import FacTTT
from esmfold_peft.adapters.ia3 import IA3
from esmfold_peft.adapters.lora import LoRA, LoRAFA
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
"""Adapter classes by `AdapterConfig.kind`: the one table of methods."""


class Count(NamedTuple):
    """How many numbers of an adapter train, and how many it keeps as drawn (VeRA's projections)."""

    trainable: int
    frozen: int


def build_adapter(shape: AttentionShape, config: AdapterConfig) -> Adapter:
    """A fresh adapter of any kind but "none" and "full"; a UserError if the settings make none."""
    adapter = ADAPTERS[config.kind](shape, config)
    adapter.freeze_factors()
    return adapter


def empty_adapter(shape: AttentionShape, config: AdapterConfig) -> Adapter:
    """An adapter whose factors will be replaced; the caller's generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        return build_adapter(shape, config)


def count(shape: AttentionShape, config: AdapterConfig) -> Count:
    """Counts the numbers of an adapter without `freeze` by building it without memory."""
    with torch.device("meta"):
        adapter = build_adapter(shape, config)
    trainable = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
    saved = sum(tensor.numel() for tensor in adapter.state_dict().values())
    return Count(trainable, saved - trainable)


def insert_adapter(lm: AdaptedModel, config: AdapterConfig) -> Adapter | None:
    """Freezes or frees the language model's weights and attaches a fresh adapter.

    A fresh adapter changes no output, unless its method's published start (init: paper) does. It
    is drawn on the CPU from the global generator, so that it is the same on every device.

    Kind "none" freezes all weights, "full" frees them all; others freeze them and add one.

    Raises:
        UserError: the settings make no adapter.
        ValueError: the model has an adapter already.
    """
    if config.kind in ("none", "full"):
        _require_unadapted(lm)
        for _, parameter in lm.base_parameters():
            parameter.requires_grad_(config.kind == "full")
        return None
    return attach_adapter(lm, build_adapter(lm.shape, config), fresh=True)


def attach_adapter(lm: AdaptedModel, adapter: Adapter, *, fresh: bool) -> Adapter:
    """Freezes the language model's weights and lets it carry an adapter.

    An adapter that is not `fresh` was read, and its factors stay as they are.

    Raises:
        ValueError: the model has an adapter already.
    """
    _require_unadapted(lm)
    adapter.settle(lm, fresh=fresh)
    for _, parameter in lm.base_parameters():
        parameter.requires_grad_(False)
    lm.adapter = adapter.to(lm.weight(0, "query").device)
    return adapter


def _require_unadapted(lm: AdaptedModel) -> None:
    if lm.adapter is not None:
        raise ValueError("the language model has an adapter already")


def trainable_adapter_parameters(lm: AdaptedModel) -> int:
    """Numbers that train in the language model: the adapter's, or with "full" its own."""
    own = [parameter for _, parameter in lm.base_parameters()]
    added = [] if lm.adapter is None else list(lm.adapter.parameters())
    return sum(parameter.numel() for parameter in own + added if parameter.requires_grad)
