"""ESM-2 files with merged weights, for fair-esm and for transformers.

The language model does not hold the heads for masked residues and contacts. They are copied from
the file of its weights, in either layout.
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
from esmfold_peft.disk.files import make_folder, write_atomically
from esmfold_peft.errors import UserError
from esmfold_peft.model.language_model import ALPHABET, PROJECTIONS
from esmfold_peft.weights.esm2_weights import split_frequencies
from esmfold_peft.weights.layouts import (
    hugging_face_name,
    hugging_face_settings,
    official_settings,
    read_published,
)
from esmfold_peft.weights.tensor_files import read_pt

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
            without the rotary frequencies and the second name of a tied embedding.
        frequencies: the rotary frequencies, which are never rounded further: bfloat16 turns
            position 500 by up to 0.6 radians.
        settings: fair-esm's; a default if the file has Hugging Face's layout.
        config: Hugging Face's; a default if the file is fair-esm's, or an ESMFold's.
    """

    path: Path
    shape: AttentionShape
    tensors: dict[str, Tensor]
    frequencies: Float[Tensor, "half"]
    settings: Namespace
    config: dict[str, Any]

    @property
    def has_head(self) -> bool:
        """Whether it has the head for masked residues."""
        return "lm_head.bias" in self.tensors


def read_esm2_file(path: Path, shape: AttentionShape) -> Esm2File:
    """Reads a file that `load_esm2` accepts for a model of this shape.

    The head for contacts, which fair-esm keeps in a file beside the checkpoint, is read too.
    """
    file = read_published(path, "ESM-2")
    tensors = dict(file.language_model())
    settings, config = Namespace(**official_settings(shape)), hugging_face_settings(shape)
    if file.is_official:
        settings = Namespace(**file.settings)
        regression = path.with_name(REGRESSION.format(stem=path.stem))
        if regression.is_file():
            tensors |= read_pt(regression).get("model", {})
    elif not file.is_esmfold:
        config = file.settings
    if "lm_head.decoder.weight" in tensors:
        tensors[_TIED] = tensors.pop("lm_head.decoder.weight")
    kept, frequencies = split_frequencies(tensors, shape, path)
    if _TIED in kept and torch.equal(kept[_TIED], kept["embed_tokens.weight"]):
        del kept[_TIED]
    return Esm2File(path, shape, kept, frequencies, settings, config)


def with_parts(file: Esm2File, parts: Iterable[CastPart], dtype: torch.dtype) -> Esm2File:
    """The file with merged matrices of a type in place of its own, and all else rounded to it."""
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in file.tensors.items()
    }
    for part in parts:
        name = f"layers.{part.layer}.{PROJECTIONS[part.target]}"
        tensors |= {f"{name}.weight": part.weight, f"{name}.bias": part.bias}
    return replace(file, tensors=tensors)


def require_fair_esm(file: Esm2File) -> None:
    """Refuses a file that fair-esm's format has no place for."""
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

    The file has passed `require_fair_esm`, the folder exists, and the stem starts with esm2, by
    which fair-esm recognises an ESM-2. The path is returned.
    """
    given = file.tensors | {_TIED: file.tensors["embed_tokens.weight"]}
    with torch.device("meta"):
        shape = file.shape
        names = list(ESM2(shape.layers, shape.width, shape.heads, ALPHABET).state_dict())
    of_contacts = [name for name in names if name.startswith("contact_head.")]
    contacts = {name: given[name] for name in of_contacts if name in given}
    model = {
        f"encoder.{'' if name.startswith('lm_head.') else 'sentence_encoder.'}{name}": (
            file.frequencies if name.endswith(".inv_freq") else given[name]
        )
        for name in names
        if name not in of_contacts
    }
    if contacts:
        write_atomically(folder / REGRESSION.format(stem=stem), _pickled({"model": contacts}))
    path = folder / f"{stem}.pt"
    write_atomically(path, _pickled({"cfg": {"model": file.settings}, "model": model}))
    return path


def write_transformers(file: Esm2File, folder: Path) -> Path:
    """Writes a folder for `EsmForMaskedLM.from_pretrained`; without the head, for `EsmModel`."""
    tensors = dict(file.tensors)
    if _TIED in tensors:
        tensors["lm_head.decoder.weight"] = tensors.pop(_TIED)
    # One entry a layer, as published; transformers 5 makes one of them again.
    for layer in range(file.shape.layers):
        name = f"encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"
        tensors[name] = file.frequencies.clone()
    named = {_prefixed(hugging_face_name(name)): t.contiguous() for name, t in tensors.items()}
    config = dict(file.config)
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


def _prefixed(name: str) -> str:
    return name if name.startswith("lm_head.") else f"esm.{name}"


def _pickled(content: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()
