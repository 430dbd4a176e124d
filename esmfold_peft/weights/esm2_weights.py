"""ESM-2's weights: where they are, both file formats, and their fingerprint."""

import hashlib
import re
from argparse import Namespace
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.sizes import size_of
from esmfold_peft.disk.files import read_json, require_file
from esmfold_peft.errors import UserError
from esmfold_peft.model.language_model import ALPHABET, LanguageModel, exact_frequencies
from esmfold_peft.weights.checkpoint_files import (
    hugging_face_config,
    is_official,
    only_tensors,
    read_pt,
    read_shards,
    require_same,
    why_unused,
)

URL = "https://dl.fbaipublicfiles.com/fair-esm/models/{name}.pt"
"""Where fair-esm publishes its checkpoints."""

UNUSED_OFFICIAL = {
    r"lm_head\.": "head for masked residues",
    r"contact_head\.": "head for contacts",
}
"""Entries of an official checkpoint that the hidden states do not depend on, and what they are."""

UNUSED_HUGGING_FACE = {
    **UNUSED_OFFICIAL,
    r"pooler\.": "pooling layer",
    r"embeddings\.(position_ids|position_embeddings\.weight)$": "leftover, positions are rotary",
}
"""The same of a Hugging Face one."""

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
        require_file(path, "language model weights")
        return path
    size_of(name)
    path = Path(torch.hub.get_dir()) / "checkpoints" / f"{name}.pt"
    if not path.exists():
        download(URL.format(name=name), path)
    return path


def load_esm2(lm: LanguageModel, path: Path) -> None:
    """Fills a language model from an official .pt file or Hugging Face's layout, in float32.

    Args:
        lm: the model; on the meta device its parameters are created here.
        path: `esm2_*.pt`, or a Hugging Face folder of an ESM-2 or an ESMFold (or its .safetensors
            or .bin file, config.json beside it).

    Raises:
        UserError: the file cannot be read, is of another architecture, or lacks a tensor, has one
            too many or one of another shape.
    """
    tensors, frequencies = split_frequencies(used_tensors(path, lm.shape), lm.shape, path)
    require_same(tensors, dict(lm.official_tensors()), path)
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
    return hash_of(lm.official_tensors(), lm.rotary_frequencies.cpu().numpy().tobytes())


def hash_of(named: Iterable[tuple[str, Tensor]], rest: bytes = b"") -> str:
    """SHA-256 of tensors in the order of their names, and of what comes after them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(named):
        value = tensor.cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.view(torch.uint8).numpy().data)
    digest.update(rest)
    return digest.hexdigest()


def download(url: str, path: Path) -> None:
    """Fetches a file under a temporary name and renames it (torch.hub does both).

    Raises:
        UserError: the download fails; the line says where the file goes.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path))
    except (OSError, HTTPException) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{url}: download failed ({reason}); put the file at {path} by hand"
        ) from error


def used_tensors(path: Path, shape: AttentionShape) -> dict[str, Tensor]:
    """The tensors of a file that a language model of these sizes needs, under fair-esm's names.

    Raises:
        UserError: the file cannot be read or is of another architecture.
    """
    read = _used_official if is_official(path) else _used_hugging_face
    return read(path, shape)


def read_official(path: Path) -> tuple[Namespace, dict[str, Tensor]]:
    """Settings and all tensors of an official checkpoint, prefixes removed.

    Raises:
        UserError: the file cannot be read or is no such checkpoint.
    """
    match read_pt(path):
        case {"cfg": {"model": Namespace() as settings}, "model": dict() as named}:
            prefix = re.compile(r"^encoder\.(sentence_encoder\.)?")
            tensors = only_tensors(named, path)
            return settings, {prefix.sub("", name): tensor for name, tensor in tensors.items()}
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
    return {name: t for name, t in tensors.items() if not why_unused(name, UNUSED_OFFICIAL)}


def read_hugging_face(path: Path) -> dict[str, Tensor]:
    """The tensors of a language model in Hugging Face's layout, without the prefix esm.

    Of an ESMFold's folder they are those of its language model.

    Raises:
        UserError: a file cannot be read.
    """
    tensors = read_shards(path)
    if read_json(hugging_face_config(path)).get("is_folding_model"):
        tensors = {name: t for name, t in tensors.items() if name.startswith("esm.")}
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
    return {
        official_name(name): tensor
        for name, tensor in tensors.items()
        if not why_unused(name, UNUSED_HUGGING_FACE)
    }


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
