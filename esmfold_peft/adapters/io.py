"""Adapters on disk: `adapter_config.json` and `adapter_model.safetensors` in one folder.

The header says what the numbers are and for which language model; loading is strict, because an
adapter that loads in part, or onto another model, predicts without complaint.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from esmfold_peft.adapters.base import AdaptedModel, Adapter, AttentionShape
from esmfold_peft.adapters.insert import ADAPTERS, attach_adapter, build_adapter
from esmfold_peft.config import AdapterConfig
from esmfold_peft.config.parsing import config_of
from esmfold_peft.disk.files import make_folder, read_bytes, read_json, write_atomically
from esmfold_peft.errors import UserError

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"


@dataclass(frozen=True, eq=False)
class SavedAdapter:
    """An adapter as a folder holds it.

    Attributes:
        adapter: on the CPU, trainable, and not settled on a language model.
        base_hash: fingerprint of the weights under it (`weights_hash`).
    """

    adapter: Adapter
    base_hash: str


def save_adapter(
    adapter: Adapter, folder: Path, base_hash: str, state: dict[str, Tensor] | None = None
) -> None:
    """Writes an adapter, each factor once, in float32, what it drew at random included.

    Each file is written under a temporary name and renamed. The header is last and holds the
    tensors' SHA-256: an interrupted save over an older one is found out on loading.

    Args:
        adapter: any adapter.
        folder: where to write; made if absent.
        base_hash: fingerprint of the weights under the adapter (`weights_hash`).
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
    """Reads an adapter without a language model.

    Args:
        folder: what `save_adapter` wrote.

    Raises:
        UserError: a file is missing or damaged, or a tensor is missing, unexpected or of another
            shape.
    """
    path = folder / CONFIG_FILE
    header = read_json(path)
    if "peft_type" in header:
        raise UserError(f"{path}: an adapter of Hugging Face PEFT; `adapters import` reads it")
    require_same(set(header), {*asdict(AdapterConfig()), *_FACTS}, path, "key")
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
    shape = config_of(header["shape"], AttentionShape, path)
    # The start is drawn and then replaced: that must not move the caller's generator.
    with torch.random.fork_rng(devices=[]):
        adapter = build_adapter(shape, config)
    fill(adapter, read_tensors(content, folder / TENSOR_FILE), folder / TENSOR_FILE)
    return SavedAdapter(adapter, header["base_sha256"])


def load_adapter(lm: AdaptedModel, folder: Path, base_hash: str) -> Adapter:
    """Attaches a saved adapter, trainable, and freezes the weights under it.

    Args:
        lm: the language model; it must carry no adapter.
        folder: what `save_adapter` wrote.
        base_hash: fingerprint of the language model's weights (`weights_hash`).

    Returns:
        The adapter, which is `lm.adapter` too.

    Raises:
        UserError: the folder cannot be read (`read_adapter`), or the adapter belongs to another
            language model. The model is then as it was.
    """
    saved = read_adapter(folder)
    require_base(saved, lm, folder, base_hash)
    return attach_adapter(lm, saved.adapter, fresh=False)


def require_base(saved: SavedAdapter, lm: AdaptedModel, folder: Path, base_hash: str) -> None:
    """Refuses an adapter of another language model.

    Raises:
        UserError: sizes or weights are others.
    """
    shape = saved.adapter.shape
    found = {
        "shape": (asdict(shape), asdict(lm.shape)),
        "base_sha256": (saved.base_hash, base_hash),
    }
    for key, (theirs, ours) in found.items():
        if theirs != ours:
            raise UserError(f"{folder / CONFIG_FILE}: {key} is {theirs}, here it is {ours}")


_FACTS = ("scale", "shape", "base_sha256", "tensors_sha256")
"""Keys of a header beside the adapter's settings."""


def _adapter_config(header: dict[str, Any], path: Path) -> AdapterConfig:
    settings = {key: value for key, value in header.items() if key not in _FACTS}
    config = config_of(settings, AdapterConfig, path)
    # The parser is made for flags and reads "2" as 2; a header that says so was not written here.
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


@torch.no_grad()
def fill(adapter: Adapter, tensors: dict[str, Tensor], path: Path) -> None:
    """Copies saved tensors into an adapter.

    Raises:
        UserError: one is missing, unexpected or of another shape.
    """
    state = adapter.state_dict()
    require_same(set(tensors), set(state), path, "tensor")
    for name, value in state.items():
        if tensors[name].shape != value.shape:
            found, wanted = tuple(tensors[name].shape), tuple(value.shape)
            raise UserError(f'{path}: tensor "{name}" has shape {found}, expected {wanted}')
    adapter.load_state_dict(tensors)


def require_same(found: set[str], wanted: set[str], path: Path, what: str) -> None:
    """Refuses what is not exactly what was expected.

    Raises:
        UserError: names one that is missing or unexpected, and the file.
    """
    for name in sorted(wanted - found):
        raise UserError(f'{path}: {what} "{name}" is missing')
    for name in sorted(found - wanted):
        raise UserError(f'{path}: {what} "{name}" is unexpected')


def read_tensors(content: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: the content is no such file.
    """
    try:
        return load(content)
    except SafetensorError as error:
        raise UserError(f"{path}: {error}") from error
