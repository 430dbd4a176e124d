"""Adapters on disk: `adapter_config.json` and `adapter_model.safetensors` in one folder.

The header says what the numbers are and for which language model. Loading is strict, because an
adapter that loads in part, or onto another model, predicts without complaint.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from esmfold_peft.adapters.base import AdaptedModel, Adapter, AttentionShape
from esmfold_peft.adapters.insert import ADAPTERS, attach_adapter, empty_adapter
from esmfold_peft.config import AdapterConfig
from esmfold_peft.config.parsing import config_of
from esmfold_peft.disk.files import make_folder, read_bytes, read_json, write_atomically
from esmfold_peft.errors import UserError

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"

_FACTS = ("scale", "shape", "base_sha256", "tensors_sha256")
"""Keys of a header beside the adapter's settings."""


@dataclass(frozen=True, eq=False)
class SavedAdapter:
    """An adapter on the CPU, not settled on a language model, and the `weights_hash` of its own."""

    adapter: Adapter
    base_hash: str


def save_adapter(
    adapter: Adapter, folder: Path, base_hash: str, state: dict[str, Tensor] | None = None
) -> None:
    """Writes an adapter, each factor once, in float32, with all that it drew at random.

    Each file is written under a temporary name and renamed. The header is last and holds the
    tensors' SHA-256, so that an interrupted save over an older one is noticed on loading.

    Args:
        adapter: any adapter.
        folder: where to write; made if absent.
        base_hash: `weights_hash` of the language model under the adapter.
        state: tensors instead of the adapter's own, by the same names.
    """
    state = adapter.state_dict() if state is None else state
    tensors = save({name: t.float().cpu().contiguous() for name, t in state.items()})
    header = {
        **asdict(adapter.config),
        "scale": adapter.scale,
        "shape": asdict(adapter.shape),
        "base_sha256": base_hash,
        "tensors_sha256": hashlib.sha256(tensors).hexdigest(),
    }
    make_folder(folder)
    write_atomically(folder / TENSOR_FILE, tensors)
    write_atomically(folder / CONFIG_FILE, json.dumps(header, indent=2) + "\n")


def read_adapter(folder: Path) -> SavedAdapter:
    """Reads what `save_adapter` wrote, without a language model.

    Raises:
        UserError: a file is missing or damaged, or a tensor is missing, unexpected or of another
            shape.
    """
    path = folder / CONFIG_FILE
    header = read_json(path)
    if "peft_type" in header:
        raise UserError(f"{path}: an adapter of Hugging Face PEFT; `adapters import` reads it")
    _require_names(header, {*asdict(AdapterConfig()), *_FACTS}, path, "key")
    config = _adapter_config(header, path)
    content = read_bytes(folder / TENSOR_FILE)
    expected = {
        "scale": ADAPTERS[config.kind].scale_of(config),
        "tensors_sha256": hashlib.sha256(content).hexdigest(),
    }
    for key, value in expected.items():
        if header[key] != value:
            raise UserError(f"{path}: {key} is {header[key]}, here it is {value}")
    if not isinstance(header["shape"], dict):
        raise UserError(f"{path}: shape is {header['shape']}, not sizes of a language model")
    adapter = empty_adapter(config_of(header["shape"], AttentionShape, path), config)
    fill(adapter, read_tensors(content, folder / TENSOR_FILE), folder / TENSOR_FILE)
    return SavedAdapter(adapter, header["base_sha256"])


def _adapter_config(header: dict[str, Any], path: Path) -> AdapterConfig:
    settings = {key: value for key, value in header.items() if key not in _FACTS}
    config = config_of(settings, AdapterConfig, path)
    # The parser is made for flags and reads "2" as 2; this program writes no such header.
    for key, value in json.loads(json.dumps(asdict(config))).items():
        if settings[key] != value:
            raise UserError(f"{path}: {key} is {settings[key]!r}, expected {value!r}")
    if config.kind not in ADAPTERS:
        raise UserError(f"{path}: kind {config.kind} is no adapter")
    try:
        ADAPTERS[config.kind].check(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return config


def load_adapter(lm: AdaptedModel, folder: Path, base_hash: str) -> Adapter:
    """Attaches a saved adapter, trainable, and freezes the weights under it.

    Raises:
        UserError: the folder cannot be read (`read_adapter`), or the adapter belongs to a language
            model whose `weights_hash` is not `base_hash`. The model is then as it was.
    """
    saved = read_adapter(folder)
    require_base(saved, lm, folder, base_hash)
    return attach_adapter(lm, saved.adapter, fresh=False)


def require_base(saved: SavedAdapter, lm: AdaptedModel, folder: Path, base_hash: str) -> None:
    """Refuses an adapter of a language model of other sizes or weights with a UserError."""
    found = {
        "shape": (asdict(saved.adapter.shape), asdict(lm.shape)),
        "base_sha256": (saved.base_hash, base_hash),
    }
    for key, (theirs, ours) in found.items():
        if theirs != ours:
            raise UserError(
                f"{folder / CONFIG_FILE}: {key} is {theirs}, here it is {ours}; give the language"
                " model that the adapter was trained on"
            )


@torch.no_grad()
def fill(adapter: Adapter, tensors: dict[str, Tensor], path: Path) -> None:
    """Copies saved tensors into an adapter; a UserError names one that does not fit."""
    require_tensors(tensors, {name: t.shape for name, t in adapter.state_dict().items()}, path)
    adapter.load_state_dict(tensors)


def require_tensors(
    found: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], path: Path
) -> None:
    """Refuses a file's tensors if one is missing, unexpected or of another shape (a UserError)."""
    _require_names(found, set(shapes), path, "tensor")
    for name, wanted in shapes.items():
        if (shape := tuple(found[name].shape)) != tuple(wanted):
            raise UserError(f'{path}: tensor "{name}" has shape {shape}, expected {tuple(wanted)}')


def _require_names(found: Mapping[str, Any], wanted: set[str], path: Path, what: str) -> None:
    for name in sorted(wanted - found.keys()):
        raise UserError(f'{path}: {what} "{name}" is missing')
    for name in sorted(found.keys() - wanted):
        raise UserError(f'{path}: {what} "{name}" is unexpected')


def read_tensors(content: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; a UserError if the content is no such file."""
    try:
        return load(content)
    except SafetensorError as error:
        raise UserError(f"{path}: {error}") from error
