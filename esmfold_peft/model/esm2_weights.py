"""ESM-2's weights: where they are, both file formats, and their fingerprint."""

import hashlib
import json
import pickle
import re
import zipfile
from argparse import Namespace
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.errors import UserError
from esmfold_peft.model.language_model import ALPHABET, LanguageModel, size_of

URL = "https://dl.fbaipublicfiles.com/fair-esm/models/{name}.pt"
"""Where fair-esm publishes its checkpoints."""

UNUSED_OFFICIAL = re.compile(r"(lm_head|contact_head)\.|.*\.rot_emb\.inv_freq$")
"""Entries of an official checkpoint that the hidden states do not depend on."""

UNUSED_HUGGING_FACE = re.compile(
    r"(lm_head|contact_head|pooler)\.|embeddings\.(position_ids|position_embeddings\.weight)$"
    r"|.*rotary_embeddings\.inv_freq$"
)
"""The same of a Hugging Face one; its position embeddings are an unused leftover."""

HUGGING_FACE_NAMES = (
    (r"embeddings\.word_embeddings", "embed_tokens"),
    (r"encoder\.emb_layer_norm_after", "emb_layer_norm_after"),
    (r"encoder\.layer\.", "layers."),
    (r"attention\.self\.query", "self_attn.q_proj"),
    (r"attention\.self\.key", "self_attn.k_proj"),
    (r"attention\.self\.value", "self_attn.v_proj"),
    (r"attention\.output\.dense", "self_attn.out_proj"),
    (r"attention\.LayerNorm", "self_attn_layer_norm"),
    (r"intermediate\.dense", "fc1"),
    (r"output\.dense", "fc2"),
    (r"LayerNorm", "final_layer_norm"),
    # Names of TensorFlow, which transformers 5 writes again.
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
)
"""Parts of Hugging Face's names and fair-esm's, to be replaced in this order."""


def find_weights(name: str, weights: str) -> Path:
    """Finds the file that holds a model's weights, and downloads the official one if need be.

    Args:
        name: official name.
        weights: "pretrained" for the official file in torch.hub's checkpoint folder, else a path.

    Raises:
        UserError: the name is unknown, nothing is at the path, or the download fails.
    """
    if weights != "pretrained":
        path = Path(weights)
        if not path.exists():
            raise UserError(f"language model weights: {path} does not exist")
        return path
    size_of(name)
    path = Path(torch.hub.get_dir()) / "checkpoints" / f"{name}.pt"
    if not path.exists():
        _download(URL.format(name=name), path)
    return path


def load_esm2(lm: LanguageModel, path: Path) -> None:
    """Fills a language model from an official .pt file or Hugging Face's layout, in float32.

    Args:
        lm: the model; on the meta device its parameters are created here.
        path: `esm2_*.pt`, or a folder with config.json and model.safetensors (or the latter's path,
            config.json beside it).

    Raises:
        UserError: the file cannot be read, is of another architecture, or lacks a tensor, has one
            too many or one of another shape.
    """
    official = path.is_file() and path.suffix == ".pt"
    tensors = _read_official(path, lm.shape) if official else _read_hugging_face(path, lm.shape)
    expected = {name: tuple(parameter.shape) for name, parameter in lm.base_parameters()}
    for name in sorted(expected.keys() - tensors.keys()):
        raise UserError(f'{path}: tensor "{name}" is missing')
    for name in sorted(tensors.keys() - expected.keys()):
        raise UserError(f'{path}: tensor "{name}" is unexpected')
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            found = tuple(tensors[name].shape)
            raise UserError(f'{path}: tensor "{name}" has shape {found}, expected {shape}')
    _assign(lm, tensors)


def weights_hash(lm: LanguageModel) -> str:
    """SHA-256 of the language model's own weights: names, types, shapes and bytes, sorted by name.

    It is the fingerprint by which adapters and runs name the model under them.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(lm.base_parameters()):
        value = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _download(url: str, path: Path) -> None:
    """Fetches a file under a temporary name and renames it (torch.hub does both)."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path))
    except (OSError, HTTPException) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{url}: download failed ({reason}); put the file at {path} by hand"
        ) from error


def _read_official(path: Path, shape: AttentionShape) -> dict[str, Tensor]:
    """Tensors of an official checkpoint, prefixes and heads removed."""
    try:
        with torch.serialization.safe_globals([Namespace]):
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path}: {reason}") from error
    if not isinstance(content, dict) or not {"cfg", "model"} <= content.keys():
        raise UserError(f'{path}: not an ESM-2 checkpoint (no "cfg" and "model")')
    settings = vars(content["cfg"]["model"])
    wanted = {
        "encoder_layers": shape.layers,
        "encoder_embed_dim": shape.width,
        "encoder_attention_heads": shape.heads,
        "token_dropout": True,
    }
    _require_settings(settings, wanted, path)
    prefix = re.compile(r"^encoder\.(sentence_encoder\.)?")
    tensors = {prefix.sub("", name): tensor for name, tensor in content["model"].items()}
    return {name: t for name, t in tensors.items() if not UNUSED_OFFICIAL.match(name)}


def _read_hugging_face(path: Path, shape: AttentionShape) -> dict[str, Tensor]:
    """Tensors of a Hugging Face checkpoint under fair-esm's names."""
    if path.is_file() and path.suffix != ".safetensors":
        raise UserError(f"{path}: neither an official .pt file nor a Hugging Face .safetensors")
    folder = path if path.is_dir() else path.parent
    _require_settings(
        _read_json(folder / "config.json"),
        {
            "model_type": "esm",
            "num_hidden_layers": shape.layers,
            "hidden_size": shape.width,
            "num_attention_heads": shape.heads,
            "intermediate_size": 4 * shape.width,
            "vocab_size": len(ALPHABET),
            "position_embedding_type": "rotary",
            "token_dropout": True,
            "emb_layer_norm_before": False,
            "layer_norm_eps": 1e-5,
        },
        folder / "config.json",
    )
    tensors: dict[str, Tensor] = {}
    for file in _shards(path):
        try:
            tensors |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: {error}") from error
    plain = {name.removeprefix("esm."): tensor for name, tensor in tensors.items()}
    used = {name: t for name, t in plain.items() if not UNUSED_HUGGING_FACE.match(name)}
    return {_official_name(name): tensor for name, tensor in used.items()}


def _shards(path: Path) -> list[Path]:
    """The safetensors files of a model: one, or those that its index lists."""
    if path.is_file():
        return [path]
    index = path / "model.safetensors.index.json"
    if not index.exists():
        return [path / "model.safetensors"]
    return [path / name for name in sorted(set(_read_json(index)["weight_map"].values()))]


def _official_name(name: str) -> str:
    for pattern, replacement in HUGGING_FACE_NAMES:
        name = re.sub(pattern, replacement, name, count=1)
    return name


def _require_settings(found: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    """Refuses a checkpoint of another architecture.

    Raises:
        UserError: a setting is absent or has another value.
    """
    for key, value in wanted.items():
        if key not in found:
            raise UserError(f"{path}: no {key} in its configuration, not an ESM-2 checkpoint")
        if found[key] != value:
            raise UserError(f"{path}: {key} is {found[key]}, the language model has {value}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error


def _assign(lm: LanguageModel, tensors: dict[str, Tensor]) -> None:
    """Copies tensors into the parameters; those on the meta device are replaced."""
    for name, parameter in list(lm.base_parameters()):
        if parameter.is_meta:
            owner, _, leaf = name.rpartition(".")
            # A copy, because a memory-mapped tensor would follow changes of its file.
            value = tensors[name].to(torch.float32, copy=True)
            fresh = torch.nn.Parameter(value, parameter.requires_grad)
            setattr(lm.get_submodule(owner), leaf, fresh)
        else:
            with torch.no_grad():
                parameter.copy_(tensors[name])
