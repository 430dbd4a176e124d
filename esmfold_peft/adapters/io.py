"""Adapters on disk: `adapter_config.json` and `adapter_model.safetensors` in one folder.

The header says what the numbers are and for which language model; loading is strict, because an
adapter that loads in part, or onto another model, predicts without complaint.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from esmfold_peft.adapters.base import TARGETS, AdaptedModel, Adapter
from esmfold_peft.adapters.insert import ADAPTERS, insert_adapter
from esmfold_peft.config import AdapterConfig
from esmfold_peft.errors import UserError
from esmfold_peft.protein.files import write_atomically

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"


def save_adapter(lm: AdaptedModel, folder: Path, base_hash: str) -> None:
    """Writes the adapter of a language model, each factor once, in float32.

    Each file is written under a temporary name and renamed. The header is last and holds the
    tensors' SHA-256: an interrupted save over an older one is found out on loading.

    Args:
        lm: a language model with an adapter.
        folder: where to write; made if absent.
        base_hash: fingerprint of the weights under the adapter (`weights_hash`).

    Raises:
        ValueError: the model has no adapter.
    """
    if lm.adapter is None:
        raise ValueError("the language model has no adapter to save")
    state = lm.adapter.state_dict()
    tensors = save({name: t.float().cpu().contiguous() for name, t in state.items()})
    header = _header(lm.adapter, base_hash, hashlib.sha256(tensors).hexdigest())
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / TENSOR_FILE, tensors)
    write_atomically(folder / CONFIG_FILE, json.dumps(header, indent=2) + "\n")


def load_adapter(lm: AdaptedModel, folder: Path, base_hash: str) -> Adapter:
    """Attaches a saved adapter, trainable, and freezes the weights under it.

    Args:
        lm: the language model; it must carry no adapter.
        folder: what `save_adapter` wrote.
        base_hash: fingerprint of the language model's weights (`weights_hash`).

    Returns:
        The adapter, which is `lm.adapter` too.

    Raises:
        UserError: a file is missing or damaged; the adapter belongs to other weights or sizes; a
            tensor is missing, unexpected or of another shape. The model is then as it was.
    """
    path = folder / CONFIG_FILE
    header = _read_header(path)
    config = _adapter_config(header, path)
    content = _read(folder / TENSOR_FILE)
    expected = {
        "scale": config.alpha / config.rank,
        "shape": asdict(lm.shape),
        "base_sha256": base_hash,
        "tensors_sha256": hashlib.sha256(content).hexdigest(),
    }
    for key, value in expected.items():
        if header[key] != value:
            raise UserError(f"{path}: {key} is {header[key]}, here it is {value}")
    return _attach(lm, config, content, folder / TENSOR_FILE)


def _header(adapter: Adapter, base_hash: str, tensors_hash: str) -> dict[str, Any]:
    return {
        **asdict(adapter.config),
        "scale": adapter.scale,
        "shape": asdict(adapter.shape),
        "base_sha256": base_hash,
        "tensors_sha256": tensors_hash,
    }


def _adapter_config(header: dict[str, Any], path: Path) -> AdapterConfig:
    """The settings in a header whose keys are exactly those that `_header` writes."""
    wanted = {*asdict(AdapterConfig()), "scale", "shape", "base_sha256", "tensors_sha256"}
    _require_same(set(header), wanted, path, "key")
    valid = {
        "kind": header["kind"] in tuple(ADAPTERS),
        "rank": isinstance(header["rank"], int) and header["rank"] > 0,
        "alpha": isinstance(header["alpha"], int | float),
        "targets": isinstance(header["targets"], list)
        and all(t in TARGETS for t in header["targets"]),
        "init": header["init"] in get_args(AdapterConfig.__annotations__["init"]),
    }
    for key, ok in valid.items():
        if not ok:
            raise UserError(f"{path}: {key} {header[key]!r} is not valid")
    return AdapterConfig(
        kind=header["kind"],
        rank=header["rank"],
        alpha=float(header["alpha"]),
        targets=tuple(header["targets"]),
        init=header["init"],
    )


def _attach(lm: AdaptedModel, config: AdapterConfig, content: bytes, path: Path) -> Adapter:
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise UserError(f"{path}: {error}") from error
    trainable = [(parameter, parameter.requires_grad) for _, parameter in lm.base_parameters()]
    adapter = insert_adapter(lm, config)
    assert adapter is not None
    try:
        _fill(adapter, tensors, path)
    except UserError:
        lm.adapter = None
        for parameter, was in trainable:
            parameter.requires_grad_(was)
        raise
    return adapter


@torch.no_grad()
def _fill(adapter: Adapter, tensors: dict[str, Tensor], path: Path) -> None:
    state = adapter.state_dict()
    _require_same(set(tensors), set(state), path, "tensor")
    for name, value in state.items():
        if tensors[name].shape != value.shape:
            found, wanted = tuple(tensors[name].shape), tuple(value.shape)
            raise UserError(f'{path}: tensor "{name}" has shape {found}, expected {wanted}')
    adapter.load_state_dict(tensors)


def _require_same(found: set[str], wanted: set[str], path: Path, what: str) -> None:
    for name in sorted(wanted - found):
        raise UserError(f'{path}: {what} "{name}" is missing')
    for name in sorted(found - wanted):
        raise UserError(f'{path}: {what} "{name}" is unexpected')


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads(_read(path))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(header, dict):
        raise UserError(f"{path}: not a JSON object")
    return header
