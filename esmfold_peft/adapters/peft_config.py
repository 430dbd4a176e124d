"""The `adapter_config.json` of Hugging Face PEFT: its settings and this project's.

Written from the files of PEFT 0.21.2. What would change an update and has no counterpart here is
refused, and so is every setting that this file does not know and that is switched on.
"""

from math import isfinite
from pathlib import Path
from typing import Any, Literal

from esmfold_peft.adapters.base import AttentionShape, Group
from esmfold_peft.adapters.sizes import SIZES
from esmfold_peft.config import AdapterConfig, AdapterKind, Target
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

PEFT_TYPES: dict[AdapterKind, str] = {
    "lora": "LORA",
    "lora_fa": "LORA",
    "dora": "LORA",
    "vera": "VERA",
    "ia3": "IA3",
}
"""The kinds that PEFT has; what it calls LoRA-FA is an optimizer."""

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


def peft_settings(adapter: AdapterConfig, base_model: str | None) -> dict[str, Any]:
    """What PEFT needs to know of an adapter.

    The patterns match whole names in an `EsmModel`, so that `output.dense` is fc2 alone, and a
    model that wraps an `EsmModel` is refused by PEFT instead of being left unadapted.

    Args:
        adapter: settings of a kind in `PEFT_TYPES`.
        base_model: Hugging Face name or path of the language model.
    """
    modules = [name.replace(".", r"\.") for t, name in MODULES.items() if t in adapter.targets]
    settings: dict[str, Any] = {
        "peft_type": PEFT_TYPES[adapter.kind],
        "auto_mapping": {
            "base_model_class": "EsmModel",
            "parent_library": "transformers.models.esm.modeling_esm",
        },
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "target_modules": f"{_LAYER}({'|'.join(modules)})",
    }
    if adapter.kind == "ia3":
        return {**settings, "feedforward_modules": _LAYER + MODULES["fc2"].replace(".", r"\.")}
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


def adapter_settings(
    header: dict[str, Any], kind: Literal["auto", "lora_fa"], path: Path
) -> AdapterConfig:
    """An adapter's settings from what PEFT wrote, all but the targets.

    Args:
        header: PEFT's settings.
        kind: lora_fa makes one of a LoRA.
        path: where the settings were read, for messages.

    Raises:
        UserError: one is missing or has no counterpart here.
    """
    found = _kind(header, path)
    if kind == "lora_fa" and found != "lora":
        raise UserError(f"{path}: only a LoRA can go on as lora_fa, this is {found}")
    refuse_others(header, path)
    if found == "ia3":
        return AdapterConfig(kind="ia3")
    rank = _rank(header, path)
    if found == "vera":
        if not header.get("save_projection", True):
            raise UserError(
                f"{path}: save_projection is off, so the frozen matrices are not in the file"
            )
        return AdapterConfig(kind="vera", rank=rank)
    return AdapterConfig(
        kind="lora_fa" if kind == "lora_fa" else found,
        rank=rank,
        alpha=_number(header, "lora_alpha", path),
        scaling="alpha/sqrt(r)" if header.get("use_rslora") else "alpha/r",
    )


def fork_settings(header: dict[str, Any], targets: Group, path: Path) -> AdapterConfig:
    """LoRTA's settings from what its authors' fork of PEFT wrote.

    Args:
        header: the fork's settings, of type LORTA.
        targets: the adapted matrices.
        path: where the settings were read, for messages.

    Raises:
        UserError: one is missing or has no counterpart here.
    """
    refuse_others(header, path)
    return AdapterConfig(
        kind="lorta",
        rank=_rank(header, path),
        alpha=_number(header, "lora_alpha", path),
        scaling="alpha/sqrt(r)" if header.get("use_rslora") else "alpha/r",
        targets=targets,
        orientation="peft",
    )


def refuse_others(header: dict[str, Any], path: Path) -> None:
    """Refuses settings that have no counterpart here and are switched on.

    Raises:
        UserError: names the first one.
    """
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


def require_base_size(header: dict[str, Any], shape: AttentionShape, path: Path) -> None:
    """Refuses an adapter whose settings name an ESM-2 of other sizes.

    Raises:
        UserError: they do; another name, or none, is no contradiction.
    """
    base = header.get("base_model_name_or_path")
    name = base.rstrip("/").rpartition("/")[2] if isinstance(base, str) else ""
    if name in SIZES and SIZES[name] != shape:
        raise UserError(
            f"{path}: base_model_name_or_path is {base}, but the language model has"
            f" {shape.layers} layers of width {shape.width} and {shape.heads} heads"
        )


def _kind(header: dict[str, Any], path: Path) -> AdapterKind:
    peft_type = header.get("peft_type")
    if peft_type == "LORA":
        return "dora" if header.get("use_dora") else "lora"
    for kind in ("vera", "ia3"):
        if peft_type == PEFT_TYPES[kind]:
            return kind
    raise UserError(f"{path}: peft_type is {peft_type}; LORA, VERA, IA3 and LORTA can be read")


def _rank(header: dict[str, Any], path: Path) -> int:
    rank = _number(header, "r", path)
    if not rank.is_integer():
        raise UserError(f"{path}: r is {rank}, not a whole number")
    return int(rank)


def _number(header: dict[str, Any], key: str, path: Path) -> float:
    """A positive number.

    Raises:
        UserError: it is missing or something else.
    """
    value: Any = header.get(key)
    if type(value) not in (int, float) or not (value > 0 and isfinite(value)):
        raise UserError(f"{path}: {key} is {value}, not a positive number")
    return float(value)
