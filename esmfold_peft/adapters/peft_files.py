"""Adapters as Hugging Face PEFT keeps them, for transformers' `EsmModel`.

The same two files as in `io`, with other names in them: PEFT has a tensor for each layer and matrix
where this project has one for all layers. Reading is strict, as PEFT's own is not: it warns of
tensors that are missing, and adapts in part.
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import save
from torch import Tensor

from esmfold_peft.adapters.base import TARGETS, Adapter, AttentionShape, Group
from esmfold_peft.adapters.insert import build_adapter
from esmfold_peft.adapters.io import (
    CONFIG_FILE,
    TENSOR_FILE,
    fill,
    read_tensors,
    require_same,
)
from esmfold_peft.adapters.peft_config import (
    MODULES,
    PEFT_TYPES,
    adapter_settings,
    peft_settings,
    require_base_size,
)
from esmfold_peft.config import AdapterConfig, Target
from esmfold_peft.disk.files import make_folder, read_bytes, read_json, write_atomically
from esmfold_peft.errors import UserError

_LORA = {"a": "lora_A.weight", "b": "lora_B.weight"}

FACTORS: dict[str, dict[str, str]] = {
    "lora": _LORA,
    "lora_fa": _LORA,
    "dora": {**_LORA, "m": "lora_magnitude_vector"},
    "vera": {"d": "vera_lambda_d", "b": "vera_lambda_b"},
    "ia3": {"l": "ia3_l"},
}
"""By kind, PEFT's names of the factors that each layer and matrix has."""

SHARED = {"projection_a": "base_model.vera_A", "projection_b": "base_model.vera_B"}
"""PEFT's names of what all layers share."""

_MODULE = "|".join(re.escape(name) for name in MODULES.values())
_KEY = re.compile(rf"(base_model\.model\.(?:esm\.)?)encoder\.layer\.\d+\.({_MODULE})\.[^.]+.*")
"""PEFT's name of a factor; `esm.` where the model wraps an `EsmModel`, as EsmForMaskedLM does."""


@dataclass(frozen=True)
class _Place:
    """Where a tensor of PEFT's file lies in an adapter.

    Attributes:
        name: of the adapter's tensor.
        layer: its part, or None for the whole tensor.
        shape: that PEFT gives it.
    """

    name: str
    layer: int | None
    shape: tuple[int, ...]


def write_peft(adapter: Adapter, folder: Path, base_model: str | None) -> None:
    """Writes an adapter so that `PeftModel.from_pretrained(EsmModel, folder)` loads it.

    Args:
        adapter: of a kind that PEFT has.
        folder: where to write; made if absent.
        base_model: Hugging Face name or path of the language model under the adapter.

    Raises:
        UserError: PEFT has no such adapter, or the folder cannot be written to.
    """
    kind = adapter.config.kind
    if kind not in PEFT_TYPES:
        fork = " (LoRTA's authors keep a fork of their own)" if kind == "lorta" else ""
        raise UserError(f"adapter.kind: PEFT has no {kind}{fork}, only {', '.join(PEFT_TYPES)}")
    state = adapter.state_dict()
    tensors = {}
    for key, place in _layout(adapter, "base_model.model.").items():
        tensor = state[place.name] if place.layer is None else state[place.name][place.layer]
        tensors[key] = tensor.detach().float().cpu().reshape(place.shape).clone()
    settings = peft_settings(adapter.config, base_model)
    make_folder(folder)
    write_atomically(folder / TENSOR_FILE, save(tensors, metadata={"format": "pt"}))
    write_atomically(folder / CONFIG_FILE, json.dumps(settings, indent=2) + "\n")


def read_peft(folder: Path, shape: AttentionShape, kind: Literal["auto", "lora_fa"]) -> Adapter:
    """Reads an adapter that PEFT saved from an `EsmModel` or a model with one inside.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
        shape: sizes of the language model that the adapter was trained on.
        kind: auto, or lora_fa to make one of a LoRA.

    Returns:
        The adapter on the CPU, trainable, and not settled on a language model.

    Raises:
        UserError: a file cannot be read; a setting has no counterpart here; or a tensor is missing,
            unexpected or of another shape.
    """
    path = folder / TENSOR_FILE
    header, tensors = read_files(folder, shape)
    config = adapter_settings(header, kind, folder / CONFIG_FILE)
    prefix, targets = _adapted(tensors, path)
    adapter = fresh_adapter(shape, replace(config, targets=targets))
    places = _layout(adapter, prefix)
    require_shapes(tensors, {key: place.shape for key, place in places.items()}, path)
    fill(adapter, _gathered(adapter, tensors, places), path)
    return adapter


def read_files(folder: Path, shape: AttentionShape) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and tensors in a folder of PEFT's.

    Raises:
        UserError: one cannot be read, or the settings name an ESM-2 of other sizes.
    """
    header = read_json(folder / CONFIG_FILE)
    require_base_size(header, shape, folder / CONFIG_FILE)
    path = folder / TENSOR_FILE
    return header, read_tensors(read_bytes(path), path)


def fresh_adapter(shape: AttentionShape, config: AdapterConfig) -> Adapter:
    """An adapter to be filled; what it draws at first does not move the caller's generator."""
    with torch.random.fork_rng(devices=[]):
        return build_adapter(shape, config)


def require_shapes(
    tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]], path: Path
) -> None:
    """Refuses tensors that are not exactly what was expected.

    Raises:
        UserError: one is missing, unexpected or of another shape.
    """
    require_same(set(tensors), set(shapes), path, "tensor")
    for key, wanted in shapes.items():
        if (found := tuple(tensors[key].shape)) != wanted:
            raise UserError(f'{path}: tensor "{key}" has shape {found}, expected {wanted}')


def _adapted(tensors: dict[str, Tensor], path: Path) -> tuple[str, Group]:
    """What stands before the layers in the names of the tensors, and which matrices they name."""
    matches = [match for key in sorted(tensors) if (match := _KEY.fullmatch(key))]
    if not matches:
        first = next(iter(sorted(tensors)), None)
        found = "no tensor at all" if first is None else f'the first tensor is "{first}"'
        raise UserError(f"{path}: no tensor adapts a matrix of an EsmModel ({found})")
    modules = {match[2] for match in matches}
    return matches[0][1], tuple(target for target in TARGETS if MODULES[target] in modules)


def _layout(adapter: Adapter, prefix: str) -> dict[str, _Place]:
    """PEFT's name of every tensor of an adapter, layer by layer.

    Args:
        adapter: of a kind in `FACTORS`.
        prefix: what stands before `encoder`.
    """
    suffixes, places = FACTORS[adapter.config.kind], {}
    for name, tensor in adapter.state_dict().items():
        if name in SHARED:
            places[SHARED[name]] = _Place(name, None, tuple(tensor.shape))
            continue
        factor, _, target = name.partition("_")
        module = f"{MODULES[cast(Target, target)]}.{suffixes[factor]}"
        shape = tuple(tensor.shape[1:])
        if adapter.config.kind == "ia3":
            # A row scales inputs, a column outputs.
            shape = (1, *shape) if target == "fc2" else (*shape, 1)
        for layer in range(adapter.shape.layers):
            places[f"{prefix}encoder.layer.{layer}.{module}"] = _Place(name, layer, shape)
    return places


def _gathered(
    adapter: Adapter, tensors: dict[str, Tensor], places: dict[str, _Place]
) -> dict[str, Tensor]:
    """The tensors of PEFT's file under the adapter's names, the layers of each in one."""
    state = {name: torch.empty_like(tensor) for name, tensor in adapter.state_dict().items()}
    for key, place in places.items():
        whole = state[place.name]
        part = whole if place.layer is None else whole[place.layer]
        part.copy_(tensors[key].view_as(part))
    return state
