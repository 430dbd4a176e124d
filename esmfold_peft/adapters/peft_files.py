"""Adapters as Hugging Face PEFT keeps them, for transformers' `EsmModel`.

The same two files as in `io`, with other names in them: PEFT has a tensor for each layer and matrix
where this project has one for all layers. Written from the files of PEFT 0.21.2. Reading is strict,
while PEFT only warns of missing tensors and adapts in part: a setting that would change an update
and has no counterpart here is refused, and so is every unknown setting that is switched on.

LoRTA's authors have a fork of PEFT, which keeps five factors for the whole model. It forms
ΔW = concat_h(A · diag(C_L[l] ∘ C_M[m] ∘ C_H[h]) · B), which is (d, H·d_h), for query, key, value
and output alike, and adds s · x·ΔWᵀ: heads slice the input of every matrix. That is
`orientation: peft` (see `lorta`). Files of the fork can be read, not written.
"""

import json
import re
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from safetensors.torch import save
from torch import Tensor

from esmfold_peft.adapters.base import (
    ATTENTION,
    SIZES,
    TARGETS,
    Adapter,
    AttentionShape,
    Group,
)
from esmfold_peft.adapters.insert import empty_adapter
from esmfold_peft.adapters.io import CONFIG_FILE, TENSOR_FILE, fill, read_tensors, require_tensors
from esmfold_peft.config import AdapterConfig, AdapterKind, Target
from esmfold_peft.disk.files import make_folder, read_bytes, read_json, write_atomically
from esmfold_peft.errors import UserError

MODULES: dict[Target, str] = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
"""Names of the adaptable matrices in a layer of transformers' `EsmModel`."""

_LORA = {"a": "lora_A.weight", "b": "lora_B.weight"}

_KINDS: dict[AdapterKind, tuple[str, dict[str, str]]] = {
    "lora": ("LORA", _LORA),
    "lora_fa": ("LORA", _LORA),
    "dora": ("LORA", {**_LORA, "m": "lora_magnitude_vector"}),
    "vera": ("VERA", {"d": "vera_lambda_d", "b": "vera_lambda_b"}),
    "ia3": ("IA3", {"l": "ia3_l"}),
}
"""The kinds that PEFT has (what it calls LoRA-FA is an optimizer): its type, and its names of the
factors that each layer and matrix has."""

_SHARED = {"projection_a": "base_model.vera_A", "projection_b": "base_model.vera_B"}
"""PEFT's names of the tensors that all layers share."""

_READ = {
    "LORA": {"peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "init_lora_weights"},
    "VERA": {"peft_type", "r", "save_projection"},
    "IA3": {"peft_type"},
    "LORTA": {"peft_type", "r", "lora_alpha", "use_rslora", "init_lora_weights"},
}
"""Settings that are read, by type."""

_HARMLESS = {
    # Where the adapter comes from and how PEFT opens it; the base model's name is checked apart.
    *("auto_mapping", "base_model_name_or_path", "inference_mode"),
    *("peft_version", "revision", "task_type"),
    # Which matrices are adapted: the names and shapes of the tensors say it (the fork's apart).
    *("target_modules", "exclude_modules", "layers_pattern", "feedforward_modules"),
    # How training starts and what it drops: outputs do not depend on it.
    *("d_initial", "eva_config", "init_ia3_weights", "init_scale", "init_weights"),
    *("lora_dropout", "projection_prng_key", "vera_dropout"),
    # Of meaning only beside a setting that is refused.
    *("megatron_core", "qalora_group_size"),
}

_HARMLESS_STARTS = {"eva", "gaussian", "mica", "orthogonal"}
"""Values of init_lora_weights that leave the weights under the adapter as they are."""

_LAYER = r"encoder\.layer\.\d+\."
_MODULE = "|".join(re.escape(name) for name in MODULES.values())
_KEY = re.compile(rf"(base_model\.model\.(?:esm\.)?){_LAYER}({_MODULE})\.[^.]+.*")
"""PEFT's name of a factor; `esm.` where the model wraps an `EsmModel`, as EsmForMaskedLM does."""

_FORK = "base_model.model.lora_"

_FORK_NAMES: dict[Target, tuple[str, ...]] = {
    "query": ("query", "q_proj", "attention.self.query", "self_attn.q_proj"),
    "key": ("key", "k_proj", "attention.self.key", "self_attn.k_proj"),
    "value": ("value", "v_proj", "attention.self.value", "self_attn.v_proj"),
    "output": (
        *("output", "dense", "out_proj", "o_proj"),
        *("attention.output.dense", "self_attn.out_proj", "self_attn.o_proj"),
    ),
}
"""The fork's names of a matrix in target_modules. It can adapt only these four."""


class _Place(NamedTuple):
    """A tensor of an adapter, a layer of it or (None) all of it, and the shape in PEFT's file."""

    name: str
    layer: int | None
    shape: tuple[int, ...]


def write_peft(adapter: Adapter, folder: Path, base_model: str | None) -> None:
    """Writes an adapter so that `PeftModel.from_pretrained(EsmModel, folder)` loads it.

    Args:
        adapter: of a kind that PEFT has; a UserError lists them.
        folder: where to write; made if absent.
        base_model: Hugging Face name or path of the language model under the adapter.
    """
    kind = adapter.config.kind
    if kind not in _KINDS:
        fork = " (LoRTA's authors keep a fork of their own)" if kind == "lorta" else ""
        raise UserError(f"adapter.kind: PEFT has no {kind}{fork}, only {', '.join(_KINDS)}")
    state = adapter.state_dict()
    tensors = {}
    for key, place in _layout(adapter, "base_model.model.").items():
        tensor = state[place.name] if place.layer is None else state[place.name][place.layer]
        tensors[key] = tensor.detach().float().cpu().reshape(place.shape).clone()
    settings = peft_settings(adapter.config, base_model)
    make_folder(folder)
    write_atomically(folder / TENSOR_FILE, save(tensors, metadata={"format": "pt"}))
    write_atomically(folder / CONFIG_FILE, json.dumps(settings, indent=2) + "\n")


def peft_settings(adapter: AdapterConfig, base_model: str | None) -> dict[str, Any]:
    """PEFT's settings for an adapter of a kind that it has.

    The patterns match whole names in an `EsmModel`, so that `output.dense` is fc2 alone, and a
    model that wraps an `EsmModel` is refused by PEFT instead of being left unadapted.
    """
    modules = [re.escape(name) for target, name in MODULES.items() if target in adapter.targets]
    settings: dict[str, Any] = {
        "peft_type": _KINDS[adapter.kind][0],
        "auto_mapping": {
            "base_model_class": "EsmModel",
            "parent_library": "transformers.models.esm.modeling_esm",
        },
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "target_modules": f"{_LAYER}({'|'.join(modules)})",
    }
    if adapter.kind == "ia3":
        return {**settings, "feedforward_modules": _LAYER + re.escape(MODULES["fc2"])}
    settings |= {"r": adapter.rank, "bias": "none"}
    if adapter.kind == "vera":
        return {**settings, "save_projection": True}
    alpha = adapter.alpha * (adapter.rank if adapter.scaling == "constant" else 1)
    return {
        **settings,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "use_rslora": adapter.scaling == "alpha/sqrt(r)",
        "use_dora": adapter.kind == "dora",
    }


def read_peft(folder: Path, shape: AttentionShape, kind: Literal["auto", "lora_fa"]) -> Adapter:
    """Reads an adapter that PEFT saved from an `EsmModel` or a model with one inside, or the fork.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
        shape: sizes of the language model that the adapter was trained on.
        kind: auto, or lora_fa to make one of a LoRA.

    Returns:
        The adapter on the CPU, not settled on a language model.

    Raises:
        UserError: a file cannot be read; a setting has no counterpart here; or a tensor is missing,
            unexpected or of another shape.
    """
    header, path = read_json(folder / CONFIG_FILE), folder / TENSOR_FILE
    _require_base_size(header, shape, folder / CONFIG_FILE)
    tensors = read_tensors(read_bytes(path), path)
    config = _adapter_settings(header, kind, folder / CONFIG_FILE)
    if config.kind == "lorta":
        adapter = empty_adapter(shape, config)
        require_tensors(tensors, _fork_shapes(shape, config.rank), path)
        fill(adapter, _fork_factors(tensors, adapter.targets), path)
        return adapter
    prefix, targets = _adapted(tensors, path)
    adapter = empty_adapter(shape, replace(config, targets=targets))
    places = _layout(adapter, prefix)
    require_tensors(tensors, {key: place.shape for key, place in places.items()}, path)
    fill(adapter, _gathered(adapter, tensors, places), path)
    return adapter


# Tensors


def _adapted(tensors: dict[str, Tensor], path: Path) -> tuple[str, Group]:
    """The prefix of the layers in the names of the tensors, and which matrices they name."""
    matches = [match for key in sorted(tensors) if (match := _KEY.fullmatch(key))]
    if not matches:
        first = next(iter(sorted(tensors)), None)
        found = "no tensor at all" if first is None else f'the first tensor is "{first}"'
        raise UserError(f"{path}: no tensor adapts a matrix of an EsmModel ({found})")
    modules = {match[2] for match in matches}
    return matches[0][1], tuple(target for target in TARGETS if MODULES[target] in modules)


def _layout(adapter: Adapter, prefix: str) -> dict[str, _Place]:
    """PEFT's name of every tensor of an adapter; `prefix` stands before `encoder`."""
    kind = adapter.config.kind
    places = {}
    for name, tensor in adapter.state_dict().items():
        if name in _SHARED:
            places[_SHARED[name]] = _Place(name, None, tuple(tensor.shape))
            continue
        factor, _, target = name.partition("_")
        module = f"{MODULES[cast(Target, target)]}.{_KINDS[kind][1][factor]}"
        shape = tuple(tensor.shape[1:])
        if kind == "ia3":
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


def _fork_shapes(shape: AttentionShape, rank: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{_FORK}A": (shape.width, rank),
        f"{_FORK}B": (rank, shape.head_width),
        f"{_FORK}C_l": (shape.layers, rank),
        f"{_FORK}C_h": (shape.heads, rank),
        f"{_FORK}C_m": (len(ATTENTION), rank),
    }


def _fork_factors(tensors: dict[str, Tensor], targets: Group) -> dict[str, Tensor]:
    """The fork's tensors under the adapter's names."""
    return {
        "a": tensors[f"{_FORK}A"],
        "b": tensors[f"{_FORK}B"].T,
        "c_l": tensors[f"{_FORK}C_l"],
        "c_h": tensors[f"{_FORK}C_h"],
        "c_m": tensors[f"{_FORK}C_m"][[ATTENTION.index(target) for target in targets]],
    }


# Settings


def _adapter_settings(
    header: dict[str, Any], kind: Literal["auto", "lora_fa"], path: Path
) -> AdapterConfig:
    """An adapter's settings from what PEFT wrote; its targets only for the fork."""
    found = _kind(header, path)
    if kind == "lora_fa" and found != "lora":
        raise UserError(f"{path}: only a LoRA can become lora_fa, this is {found}; use --kind auto")
    _refuse_others(header, path)
    if found == "ia3":
        return AdapterConfig(kind="ia3")
    rank = _number(header, "r", path)
    if not rank.is_integer():
        raise UserError(f"{path}: r is {rank}, not a whole number")
    if found == "vera":
        if not header.get("save_projection", True):
            raise UserError(
                f"{path}: save_projection is off, so the frozen matrices are not in the file;"
                " save the adapter with save_projection=True"
            )
        return AdapterConfig(kind="vera", rank=int(rank))
    config = AdapterConfig(
        kind="lora_fa" if kind == "lora_fa" else found,
        rank=int(rank),
        alpha=_number(header, "lora_alpha", path),
        scaling="alpha/sqrt(r)" if header.get("use_rslora") else "alpha/r",
    )
    if found == "lorta":
        return replace(config, targets=_fork_targets(header, path), orientation="peft")
    return config


def _kind(header: dict[str, Any], path: Path) -> AdapterKind:
    peft_type = str(header.get("peft_type"))
    lora: AdapterKind = "dora" if header.get("use_dora") else "lora"
    kinds: dict[str, AdapterKind] = {"LORA": lora, "VERA": "vera", "IA3": "ia3", "LORTA": "lorta"}
    if peft_type not in kinds:
        raise UserError(f"{path}: peft_type is {peft_type}; LORA, VERA, IA3 and LORTA can be read")
    return kinds[peft_type]


def _refuse_others(header: dict[str, Any], path: Path) -> None:
    """Refuses settings that have no counterpart here and are switched on."""
    known = _READ[header["peft_type"]] | _HARMLESS
    for key, value in header.items():
        neutral = not value or (key, value) == ("bias", "none")
        if key not in known and not neutral:
            raise UserError(f"{path}: {key} is {value}, which has no counterpart here")
    start = header.get("init_lora_weights")
    if isinstance(start, str) and start not in _HARMLESS_STARTS:
        raise UserError(
            f"{path}: init_lora_weights is {start}, which changes the weights under the adapter"
        )


def _number(header: dict[str, Any], key: str, path: Path) -> float:
    """A positive number."""
    value: Any = header.get(key)
    if type(value) not in (int, float) or not (value > 0 and isfinite(value)):
        raise UserError(f"{path}: {key} is {value}, not a positive number")
    return float(value)


def _fork_targets(header: dict[str, Any], path: Path) -> Group:
    """The adapted matrices, which the tensors do not tell: C_M has a row for each of the four."""
    names = header.get("target_modules")
    if not isinstance(names, list) or not names:
        raise UserError(f"{path}: target_modules is {names}, not a list of names")
    found = set()
    for name in names:
        target = next((target for target in _FORK_NAMES if name in _FORK_NAMES[target]), None)
        if target is None:
            raise UserError(f"{path}: target_modules: {name} is no matrix of the attention")
        found.add(target)
    return tuple(target for target in ATTENTION if target in found)


def _require_base_size(header: dict[str, Any], shape: AttentionShape, path: Path) -> None:
    """Refuses an adapter whose settings name a published ESM-2 of other sizes."""
    base = header.get("base_model_name_or_path")
    name = base.rstrip("/").rpartition("/")[2] if isinstance(base, str) else ""
    if name in SIZES and SIZES[name] != shape:
        raise UserError(
            f"{path}: base_model_name_or_path is {base}, but the language model has"
            f" {shape.layers} layers of width {shape.width} and {shape.heads} heads"
        )
