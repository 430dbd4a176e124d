"""ESM-2's weights: where they are, both file formats, and their fingerprint."""

import hashlib
import pickle
import re
import zipfile
from argparse import Namespace
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.sizes import size_of
from esmfold_peft.errors import UserError
from esmfold_peft.model.language_model import ALPHABET, LanguageModel, exact_frequencies
from esmfold_peft.protein.files import read_json

URL = "https://dl.fbaipublicfiles.com/fair-esm/models/{name}.pt"
"""Where fair-esm publishes its checkpoints."""

UNUSED_OFFICIAL = re.compile(r"(lm_head|contact_head)\.")
"""Entries of an official checkpoint that the hidden states do not depend on."""

UNUSED_HUGGING_FACE = re.compile(
    r"(lm_head|contact_head|pooler)\.|embeddings\.(position_ids|position_embeddings\.weight)$"
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
)
"""Parts of Hugging Face's names and fair-esm's, to be replaced in this order."""

TENSORFLOW_NAMES = ((r"\.gamma$", ".weight"), (r"\.beta$", ".bias"))
"""The same for names of TensorFlow, which transformers 5 writes again."""


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
    read = _used_official if is_official(path) else _used_hugging_face
    tensors, frequencies = split_frequencies(read(path, lm.shape), lm.shape, path)
    expected = {name: tuple(tensor.shape) for name, tensor in lm.official_tensors()}
    for name in sorted(expected.keys() - tensors.keys()):
        raise UserError(f'{path}: tensor "{name}" is missing')
    for name in sorted(tensors.keys() - expected.keys()):
        raise UserError(f'{path}: tensor "{name}" is unexpected')
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            found = tuple(tensors[name].shape)
            raise UserError(f'{path}: tensor "{name}" has shape {found}, expected {shape}')
    _assign(lm, tensors)
    lm.rotary_frequencies.copy_(frequencies)


def split_frequencies(
    tensors: dict[str, Tensor], shape: AttentionShape, path: Path
) -> tuple[dict[str, Tensor], Float[Tensor, "half"]]:
    """The tensors of a file without its rotary frequencies, and these in float32.

    A file that has none means those of the formula. They must not be computed where it has them:
    ESM-2 was trained with them in float16, which turns position 500 by up to 0.1 radians.

    Raises:
        UserError: they differ between layers, or are not as many as a head needs.
    """
    found = {name: t.float() for name, t in tensors.items() if name.endswith("inv_freq")}
    rest = {name: tensor for name, tensor in tensors.items() if name not in found}
    exact = exact_frequencies(shape.head_width)
    first = next(iter(found.values()), exact)
    for name, value in found.items():
        if value.shape != exact.shape or not torch.equal(value, first):
            raise UserError(f'{path}: tensor "{name}" is not the rotary frequencies of all layers')
    return rest, first


def weights_hash(lm: LanguageModel) -> str:
    """SHA-256 of the language model's own weights: official names, types, shapes and bytes.

    The rotary frequencies, which are read from the weights' file too, come last.

    It is the fingerprint by which adapters and runs name the model under them.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(lm.official_tensors()):
        value = tensor.cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.view(torch.uint8).numpy().data)
    digest.update(lm.rotary_frequencies.cpu().numpy().tobytes())
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


def is_official(path: Path) -> bool:
    """Whether a path is an official .pt file; otherwise it is Hugging Face's layout."""
    return path.is_file() and path.suffix == ".pt"


def read_pt(path: Path) -> dict[str, Any]:
    """The content of an official .pt file, of which nothing is run; tensors are mapped, not read.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with torch.serialization.safe_globals([Namespace]):
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path}: {reason}") from error
    return content if isinstance(content, dict) else {}


def read_official(path: Path) -> tuple[Namespace, dict[str, Tensor]]:
    """Settings and all tensors of an official checkpoint, prefixes removed.

    Raises:
        UserError: the file cannot be read or is no such checkpoint.
    """
    match read_pt(path):
        case {"cfg": {"model": Namespace() as settings}, "model": dict() as named}:
            prefix = re.compile(r"^encoder\.(sentence_encoder\.)?")
            return settings, {prefix.sub("", str(name)): tensor for name, tensor in named.items()}
    raise UserError(f'{path}: not an ESM-2 checkpoint (no "cfg" and "model")')


def _used_official(path: Path, shape: AttentionShape) -> dict[str, Tensor]:
    """Tensors of an official checkpoint of these sizes, heads removed."""
    settings, tensors = read_official(path)
    wanted = {
        "encoder_layers": shape.layers,
        "encoder_embed_dim": shape.width,
        "encoder_attention_heads": shape.heads,
        "token_dropout": True,
    }
    _require_settings(vars(settings), wanted, path)
    return {name: t for name, t in tensors.items() if not UNUSED_OFFICIAL.match(name)}


def hugging_face_config(path: Path) -> Path:
    """The config.json of Hugging Face's layout.

    Args:
        path: the folder, or a .safetensors file in it.

    Raises:
        UserError: the path is some other file.
    """
    if path.is_file() and path.suffix != ".safetensors":
        raise UserError(f"{path}: neither an official .pt file nor a Hugging Face .safetensors")
    return (path if path.is_dir() else path.parent) / "config.json"


def read_hugging_face(path: Path) -> dict[str, Tensor]:
    """All tensors of Hugging Face's layout, without the prefix esm., shards put together.

    Raises:
        UserError: a file cannot be read.
    """
    tensors: dict[str, Tensor] = {}
    for file in _shards(path):
        try:
            tensors |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: {error}") from error
    return {name.removeprefix("esm."): tensor for name, tensor in tensors.items()}


def _used_hugging_face(path: Path, shape: AttentionShape) -> dict[str, Tensor]:
    """Tensors of a Hugging Face checkpoint of these sizes under fair-esm's names, heads removed."""
    config = hugging_face_config(path)
    _require_settings(
        read_json(config),
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
        config,
    )
    tensors = read_hugging_face(path)
    used = {name: t for name, t in tensors.items() if not UNUSED_HUGGING_FACE.match(name)}
    return {official_name(name): tensor for name, tensor in used.items()}


def _shards(path: Path) -> list[Path]:
    """The safetensors files of a model: one, or those that its index lists."""
    if path.is_file():
        return [path]
    index = path / "model.safetensors.index.json"
    if not index.exists():
        return [path / "model.safetensors"]
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise UserError(f"{index}: weight_map names no files")
    return [path / name for name in sorted(set(files.values()))]


def official_name(name: str) -> str:
    """Fair-esm's name of a Hugging Face one, both without prefixes."""
    for pattern, replacement in HUGGING_FACE_NAMES + TENSORFLOW_NAMES:
        name = re.sub(pattern, replacement, name, count=1)
    return name


def hugging_face_name(name: str) -> str:
    """Hugging Face's name of a fair-esm one, both without prefixes."""
    for pattern, part in HUGGING_FACE_NAMES:
        name = name.replace(part, pattern.replace("\\", ""), 1)
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


@torch.no_grad()
def _assign(lm: LanguageModel, tensors: dict[str, Tensor]) -> None:
    """Copies tensors into the parameters; those on the meta device are replaced."""
    for name, parameter in list(lm.base_parameters()):
        if parameter.is_meta:
            owner, _, leaf = name.rpartition(".")
            fresh = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
            setattr(lm.get_submodule(owner), leaf, nn.Parameter(fresh, parameter.requires_grad))
    for name, tensor in lm.official_tensors():
        tensor.copy_(tensors[name])
