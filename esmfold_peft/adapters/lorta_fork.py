"""LoRTA as its authors' fork of PEFT keeps it: five factors for the whole model.

That program forms ΔW = concat_h(A · diag(C_L[l] ∘ C_M[m] ∘ C_H[h]) · B), which is (d, H·d_h), for
query, key, value and output alike, and adds s · x·ΔWᵀ: heads slice the input of every matrix. That
is `orientation: peft` (see `lorta`).
"""

from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from esmfold_peft.adapters.base import ATTENTION, Adapter, AttentionShape, Group
from esmfold_peft.adapters.io import CONFIG_FILE, TENSOR_FILE, fill
from esmfold_peft.adapters.peft_config import fork_settings
from esmfold_peft.adapters.peft_files import fresh_adapter, read_files, require_shapes
from esmfold_peft.config import Target
from esmfold_peft.errors import UserError

NAMES: dict[Target, tuple[str, ...]] = {
    "query": ("query", "q_proj", "attention.self.query", "self_attn.q_proj"),
    "key": ("key", "k_proj", "attention.self.key", "self_attn.k_proj"),
    "value": ("value", "v_proj", "attention.self.value", "self_attn.v_proj"),
    "output": (
        *("output", "dense", "out_proj", "o_proj"),
        *("attention.output.dense", "self_attn.out_proj", "self_attn.o_proj"),
    ),
}
"""What target_modules calls a matrix. Only these four can be adapted, `dense` among them."""

PREFIX = "base_model.model.lora_"


def read_fork(folder: Path, shape: AttentionShape, kind: Literal["auto", "lora_fa"]) -> Adapter:
    """Reads an adapter that the fork saved.

    Args:
        folder: with adapter_config.json, of type LORTA, and adapter_model.safetensors.
        shape: sizes of the language model that the adapter was trained on.
        kind: auto; this is no LoRA that could go on as lora_fa.

    Returns:
        The adapter on the CPU, trainable.

    Raises:
        UserError: a file cannot be read; a setting has no counterpart here; or a tensor is missing,
            unexpected or of another shape.
    """
    config_path, path = folder / CONFIG_FILE, folder / TENSOR_FILE
    if kind != "auto":
        raise UserError(f"{config_path}: only a LoRA can go on as {kind}, this is lorta")
    header, tensors = read_files(folder, shape)
    config = fork_settings(header, _targets(header, config_path), config_path)
    adapter = fresh_adapter(shape, config)
    require_shapes(tensors, _shapes(shape, config.rank), path)
    fill(adapter, _factors(tensors, adapter.targets), path)
    return adapter


def _targets(header: dict[str, Any], path: Path) -> Group:
    """The adapted matrices, which the tensors do not tell: C_M has a row for each of the four."""
    names = header.get("target_modules")
    if not isinstance(names, list) or not names:
        raise UserError(f"{path}: target_modules is {names}, not a list of names")
    found = set()
    for name in names:
        target = next((target for target in NAMES if name in NAMES[target]), None)
        if target is None:
            raise UserError(f"{path}: target_modules: {name} is no matrix of the attention")
        found.add(target)
    return tuple(target for target in ATTENTION if target in found)


def _shapes(shape: AttentionShape, rank: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{PREFIX}A": (shape.width, rank),
        f"{PREFIX}B": (rank, shape.head_width),
        f"{PREFIX}C_l": (shape.layers, rank),
        f"{PREFIX}C_h": (shape.heads, rank),
        f"{PREFIX}C_m": (len(ATTENTION), rank),
    }


def _factors(tensors: dict[str, Tensor], targets: Group) -> dict[str, Tensor]:
    """The fork's tensors under the adapter's names."""
    return {
        "a": tensors[f"{PREFIX}A"],
        "b": tensors[f"{PREFIX}B"].T,
        "c_l": tensors[f"{PREFIX}C_l"],
        "c_h": tensors[f"{PREFIX}C_h"],
        "c_m": tensors[f"{PREFIX}C_m"][[ATTENTION.index(target) for target in targets]],
    }
