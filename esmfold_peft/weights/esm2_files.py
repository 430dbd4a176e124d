"""ESM-2 files with merged weights, for fair-esm and for transformers.

What the language model does not hold (the heads for masked residues and contacts) is taken from the
file that its weights came from, in either format.
"""

import io
import json
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from esm.model.esm2 import ESM2
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.merge import CastPart
from esmfold_peft.disk.files import make_folder, read_json, write_atomically
from esmfold_peft.errors import UserError
from esmfold_peft.model.language_model import ALPHABET, PROJECTIONS
from esmfold_peft.weights.checkpoint_files import hugging_face_config, is_official, read_pt
from esmfold_peft.weights.esm2_weights import (
    hugging_face_name,
    official_name,
    read_hugging_face,
    read_official,
    split_frequencies,
)

REGRESSION = "{stem}-contact-regression.pt"
"""File beside fair-esm's checkpoints that holds the head for contacts."""

_TIED = "lm_head.weight"
"""The embedding of the tokens by a second name."""


@dataclass(frozen=True, eq=False)
class Esm2File:
    """All of an ESM-2 file.

    Attributes:
        path: where it was read.
        shape: sizes of the model.
        tensors: by fair-esm's names without prefixes, or Hugging Face's where fair-esm has none;
            the rotary frequencies and the second name of a tied embedding are left out.
        frequencies: the rotary frequencies.
        settings: fair-esm's; None if the file has Hugging Face's layout.
        config: Hugging Face's; None if the file is fair-esm's, or an ESMFold's.
    """

    path: Path
    shape: AttentionShape
    tensors: dict[str, Tensor]
    frequencies: Float[Tensor, "half"]
    settings: Namespace | None
    config: dict[str, Any] | None

    @property
    def has_head(self) -> bool:
        """Whether it has the head for masked residues."""
        return "lm_head.bias" in self.tensors


def read_esm2_file(path: Path, shape: AttentionShape) -> Esm2File:
    """Reads what `load_esm2` accepts, with the head for contacts beside it if there is one.

    Args:
        path: official .pt file, Hugging Face folder (an ESMFold's too), or a .safetensors or .bin
            file in one.
        shape: sizes of the model, which the file has been checked for.

    Raises:
        UserError: a file cannot be read.
    """
    if is_official(path):
        settings, tensors = read_official(path)
        regression = path.with_name(REGRESSION.format(stem=path.stem))
        if regression.is_file():
            tensors |= read_pt(regression).get("model", {})
        return _esm2_file(path, shape, tensors, settings, None)
    config = read_json(hugging_face_config(path))
    tensors = {official_name(name): tensor for name, tensor in read_hugging_face(path).items()}
    if "lm_head.decoder.weight" in tensors:
        tensors[_TIED] = tensors.pop("lm_head.decoder.weight")
    # The language model alone is no folding model.
    return _esm2_file(
        path, shape, tensors, None, None if config.get("is_folding_model") else config
    )


def with_parts(file: Esm2File, parts: Iterable[CastPart], dtype: torch.dtype) -> Esm2File:
    """The file with merged matrices in place of its own, and everything else rounded as well.

    Args:
        file: what was read.
        parts: of that type (`merged_parts`).
        dtype: of all weights.
    """
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in file.tensors.items()
    }
    for part in parts:
        name = f"layers.{part.layer}.{PROJECTIONS[part.target]}"
        tensors |= {f"{name}.weight": part.weight, f"{name}.bias": part.bias}
    return replace(file, tensors=tensors)


def require_fair_esm(file: Esm2File) -> None:
    """Refuses a file that fair-esm's format has no place for.

    Raises:
        UserError: the head for masked residues is absent, or its matrix is not the embedding.
    """
    problem = ""
    if not file.has_head:
        problem = "has no head for masked residues (lm_head)"
    elif _TIED in file.tensors:
        problem = "has a head whose matrix is not the embedding"
    if problem:
        raise UserError(
            f"{file.path}: {problem}, which fair-esm's format needs; --formats transformers works"
        )


def write_fair_esm(file: Esm2File, folder: Path, stem: str) -> Path:
    """Writes a checkpoint that fair-esm loads, and the head for contacts beside it.

    Args:
        file: what to write; `require_fair_esm` has passed.
        folder: folder that exists.
        stem: name without ending; fair-esm takes a file for ESM-2 if it starts with esm2.

    Returns:
        The checkpoint.
    """
    given = file.tensors | {_TIED: file.tensors["embed_tokens.weight"]}
    names = _official_names(file.shape)
    contacts = {name: given[name] for name in names if name in given and _is_contact(name)}
    model = {
        f"encoder.{'' if name.startswith('lm_head.') else 'sentence_encoder.'}{name}": (
            file.frequencies if name.endswith(".inv_freq") else given[name]
        )
        for name in names
        if not _is_contact(name)
    }
    if contacts:
        write_atomically(folder / REGRESSION.format(stem=stem), _pickled({"model": contacts}))
    path = folder / f"{stem}.pt"
    settings = file.settings or _settings(file.shape)
    write_atomically(path, _pickled({"cfg": {"model": settings}, "model": model}))
    return path


def write_transformers(file: Esm2File, folder: Path) -> Path:
    """Writes a folder for `EsmForMaskedLM.from_pretrained`, or `EsmModel` of a file without head.

    Args:
        file: what to write.
        folder: made if absent.

    Returns:
        The folder.
    """
    tensors = dict(file.tensors)
    if _TIED in tensors:
        tensors["lm_head.decoder.weight"] = tensors.pop(_TIED)
    # One entry a layer, as published; transformers 5 makes one of them again.
    for layer in range(file.shape.layers):
        name = f"encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"
        tensors[name] = file.frequencies.clone()
    named = {_prefixed(hugging_face_name(name)): t.contiguous() for name, t in tensors.items()}
    config = dict(file.config or hugging_face_settings(file.shape))
    config.pop("torch_dtype", None)
    if not file.has_head:
        config["architectures"] = ["EsmModel"]
    config["tie_word_embeddings"] = _TIED not in file.tensors
    config["dtype"] = str(tensors["embed_tokens.weight"].dtype).removeprefix("torch.")
    make_folder(folder)
    write_atomically(folder / "model.safetensors", save(named, metadata={"format": "pt"}))
    write_atomically(folder / "vocab.txt", "\n".join(ALPHABET.all_toks))
    write_atomically(folder / "config.json", json.dumps(config, indent=2) + "\n")
    return folder


def _esm2_file(
    path: Path,
    shape: AttentionShape,
    tensors: dict[str, Tensor],
    settings: Namespace | None,
    config: dict[str, Any] | None,
) -> Esm2File:
    # They are never rounded further: bfloat16 turns position 500 by up to 0.6 radians.
    kept, frequencies = split_frequencies(tensors, shape, path)
    if _TIED in kept and torch.equal(kept[_TIED], kept["embed_tokens.weight"]):
        del kept[_TIED]
    return Esm2File(path, shape, kept, frequencies, settings, config)


def _official_names(shape: AttentionShape) -> list[str]:
    with torch.device("meta"):
        return list(ESM2(shape.layers, shape.width, shape.heads, ALPHABET).state_dict())


def _is_contact(name: str) -> bool:
    return name.startswith("contact_head.")


def _prefixed(name: str) -> str:
    return name if name.startswith("lm_head.") else f"esm.{name}"


def _pickled(content: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def _settings(shape: AttentionShape) -> Namespace:
    """What fair-esm reads of its settings."""
    return Namespace(
        encoder_layers=shape.layers,
        encoder_embed_dim=shape.width,
        encoder_attention_heads=shape.heads,
        token_dropout=True,
    )


def hugging_face_settings(shape: AttentionShape) -> dict[str, Any]:
    """What Hugging Face publishes as config.json of an ESM-2 of these sizes."""
    return {
        "architectures": ["EsmForMaskedLM"],
        "model_type": "esm",
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.width,
        "num_attention_heads": shape.heads,
        "intermediate_size": 4 * shape.width,
        "vocab_size": len(ALPHABET),
        "mask_token_id": ALPHABET.mask_idx,
        "pad_token_id": ALPHABET.padding_idx,
        "max_position_embeddings": 1026,
        "position_embedding_type": "rotary",
        "token_dropout": True,
        "emb_layer_norm_before": False,
        "layer_norm_eps": 1e-5,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "is_folding_model": False,
        "tie_word_embeddings": True,
        "use_cache": True,
    }
