"""The contents of a file of published weights, and how it fits the models here."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esmfold_peft.adapters.base import SIZES, AttentionShape
from esmfold_peft.config import EsmfoldConfig, ModelConfig
from esmfold_peft.config.parsing import config_of
from esmfold_peft.disk.files import require_file
from esmfold_peft.errors import UserError
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.language_model import LanguageModel
from esmfold_peft.weights.esm2_weights import split_frequencies
from esmfold_peft.weights.esmfold_weights import (
    Sizes,
    file_sizes,
    published_name,
    released_tensors,
)
from esmfold_peft.weights.layouts import Kind, PublishedFile, read_published, why_unused
from esmfold_peft.weights.tensor_files import Comparison, compare

PARTS = {
    r"esm\.": "language model",
    r"trunk\.structure_module\.": "structure module",
    r"trunk\.|esm_s_|embedding\.": "trunk",
    r"distogram_head\.": "distogram head",
    r"lddt_head\.": "plddt head",
    r"ptm_head\.": "pae head",
    r"": "unknown",
}
"""Parts of an ESMFold by its files' names; the first pattern that matches counts."""

Settings = dict[str, str | int]
"""Values by settings such as model.esmfold.blocks."""


@dataclass(frozen=True)
class Part:
    """A part of a model: how many tensors fill it, with how many numbers of which types."""

    part: str
    tensors: int
    parameters: int
    types: str


@dataclass(frozen=True)
class Unused:
    """Tensors that are ignored for the same reason: the name of the first, how many, and why."""

    first: str
    tensors: int
    why: str


@dataclass(frozen=True)
class Contents:
    """The contents of a file: the parts that it fills, and the tensors that are ignored.

    Attributes:
        settings: those that a model must have for the file to fit.
        differences: what keeps it from filling a model of these settings.
    """

    file: str
    kind: Kind
    parts: tuple[Part, ...]
    settings: Settings
    unused: tuple[Unused, ...]
    differences: Comparison


def contents_of(path: Path) -> Contents:
    """Recognises a file and compares it with a model of its sizes, which takes no memory.

    Args:
        path: official .pt file, or a Hugging Face folder (or a .safetensors or .bin file in it).

    Raises:
        UserError: it cannot be read, or is neither an ESMFold nor an ESM-2.
    """
    require_file(path)
    file = read_published(path)
    shape = file.shape()
    if file.is_esmfold:
        trunk = file.used_by_trunk()
        settings = _esmfold_settings(file, shape)
        lm = _empty_language_model(shape or _shape_of(file_sizes(file)))
        config = config_of(nested(settings)["model"], ModelConfig, path)
        differences = _trunk_differences(trunk, lm, config)
        differences = replace(differences, wrong=(*file.wrong_settings(), *differences.wrong))
    else:
        assert shape is not None
        settings = _language_model_settings(shape) | {"model.language_model.weights": str(path)}
        lm, differences = _empty_language_model(shape), Comparison()
    if shape is not None:
        differences = _both(differences, _language_model_differences(file, lm))
    used: dict[str, list[Tensor]] = {}
    unused: dict[str, list[str]] = {}
    for name, tensor in file.tensors.items():
        if (why := why_unused(name)) is not None:
            unused.setdefault(why, []).append(name)
        else:
            patterns = PARTS if file.is_esmfold else {"": "language model"}
            part = next(part for pattern, part in patterns.items() if re.match(pattern, name))
            used.setdefault(part, []).append(tensor)
    return Contents(
        file=str(path),
        kind=file.kind,
        parts=tuple(_part(part, tensors) for part, tensors in used.items()),
        settings=settings,
        unused=tuple(Unused(names[0], len(names), why) for why, names in unused.items()),
        differences=differences,
    )


def _part(name: str, tensors: list[Tensor]) -> Part:
    types = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})
    return Part(name, len(tensors), sum(map(Tensor.numel, tensors)), ", ".join(types))


def _trunk_differences(
    tensors: dict[str, Tensor], lm: LanguageModel, config: ModelConfig
) -> Comparison:
    """Compares all but the language model."""
    with torch.device("meta"):
        model = FoldingModel(lm, config, bf16=False)
    found = compare(tensors, dict(released_tensors(model)))
    # Sizes were read from tensors; where one is missing, shapes are compared with a guess.
    return replace(found, wrong=()) if found.missing else found


def _language_model_differences(file: PublishedFile, lm: LanguageModel) -> Comparison:
    try:
        used = file.used_by_language_model(lm.shape)
        tensors, _ = split_frequencies(used, lm.shape, file.path)
    except UserError as error:
        return Comparison(wrong=(str(error),))
    return compare(tensors, dict(lm.official_tensors()))


def _both(first: Comparison, second: Comparison) -> Comparison:
    return Comparison(
        first.missing + second.missing,
        first.unexpected + second.unexpected,
        first.wrong + second.wrong,
    )


def _language_model_settings(shape: AttentionShape) -> Settings:
    name = next((name for name, size in SIZES.items() if size == shape), None)
    if name is not None:
        return {"model.language_model.name": name}
    return {
        "model.language_model.name": "custom",
        "model.language_model.layers": shape.layers,
        "model.language_model.width": shape.width,
        "model.language_model.heads": shape.heads,
    }


def _esmfold_settings(file: PublishedFile, shape: AttentionShape | None) -> Settings:
    sizes = file_sizes(file)
    of_trunk = {n: s for n, s in sizes.items() if not n.startswith("model.language_model.")}
    settings: Settings = {"model.language_model.name": published_name(sizes) or "custom"}
    if shape is not None:
        settings = _language_model_settings(shape)
        settings |= {"model.language_model.weights": str(file.path)}
    elif settings["model.language_model.name"] == "custom":
        # The heads of a language model that is not in the file cannot be seen.
        settings |= {n: s for n, s in sizes.items() if n not in of_trunk}
    settings |= {"model.trunk": EsmfoldConfig.trunk, "model.esmfold.weights": str(file.path)}
    return settings | of_trunk


def _shape_of(sizes: Sizes) -> AttentionShape:
    """A language model of the layers and width that an ESMFold's file was made for."""
    published = SIZES["esm2_t36_3B_UR50D"]
    layers = sizes.get("model.language_model.layers", published.layers)
    return AttentionShape(layers, sizes.get("model.language_model.width", published.width), 1)


def _empty_language_model(shape: AttentionShape) -> LanguageModel:
    try:
        with torch.device("meta"):
            return LanguageModel(shape)
    except RuntimeError as error:  # sizes beyond any tensor
        raise UserError(f"{shape}: no language model has these sizes ({error})") from error


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as in a YAML file, a mapping for each dot."""
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        *above, leaf = name.split(".")
        branch = tree
        for key in above:
            branch = branch.setdefault(key, {})
        branch[leaf] = value
    return tree
