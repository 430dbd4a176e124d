"""What is in a file of published weights, and how it fits the models here."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.sizes import SIZES
from esmfold_peft.config import EsmfoldConfig, ModelConfig
from esmfold_peft.config.parsing import config_of
from esmfold_peft.disk.files import read_json, require_file
from esmfold_peft.errors import UserError
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.language_model import LanguageModel
from esmfold_peft.weights.checkpoint_files import (
    Comparison,
    compare,
    hugging_face_config,
    is_official,
    read_pt,
    read_shards,
    why_unused,
)
from esmfold_peft.weights.esm2_weights import (
    UNUSED_HUGGING_FACE,
    UNUSED_OFFICIAL,
    read_official,
    split_frequencies,
    used_tensors,
)
from esmfold_peft.weights.esmfold_files import (
    LANGUAGE_MODEL,
    UNUSED,
    EsmfoldFile,
    Sizes,
    read_esmfold,
)
from esmfold_peft.weights.esmfold_weights import published_name, released_tensors

Kind = Literal["official ESMFold", "Hugging Face ESMFold", "official ESM-2", "Hugging Face ESM-2"]

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

_OFFICIAL = ("encoder_layers", "encoder_embed_dim", "encoder_attention_heads")
_HUGGING_FACE = ("num_hidden_layers", "hidden_size", "num_attention_heads")

Settings = dict[str, str | int]
"""Values by settings such as model.esmfold.blocks."""


@dataclass(frozen=True)
class Part:
    """A part of a model.

    Attributes:
        part: its name.
        tensors: how many fill it.
        parameters: numbers in them.
        types: of the numbers.
    """

    part: str
    tensors: int
    parameters: int
    types: str


@dataclass(frozen=True)
class Unused:
    """Tensors that are passed over for the same reason.

    Attributes:
        first: name of one of them.
        tensors: how many they are.
        why: the reason.
    """

    first: str
    tensors: int
    why: str


@dataclass(frozen=True)
class Contents:
    """What is in a file.

    Attributes:
        file: its path.
        kind: what it is.
        parts: what it fills.
        settings: those that a model must have for the file to fit.
        unused: what is passed over.
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
    if not is_official(path):
        return _hugging_face(path)
    named = read_pt(path, inert=True).get("model")
    names = [str(name) for name in named] if isinstance(named, dict) else []
    if any(name.startswith("trunk.") for name in names):
        return _esmfold(path, "official ESMFold", None)
    if any(name.endswith("embed_tokens.weight") for name in names):
        return _official_esm2(path)
    raise UserError(f"{path}: not recognised, neither an ESMFold nor an ESM-2")


def _hugging_face(path: Path) -> Contents:
    file = hugging_face_config(path)
    config = read_json(file)
    if config.get("model_type") != "esm":
        raise UserError(f"{path}: not recognised, its model_type is {config.get('model_type')}")
    shape = _shape(config, _HUGGING_FACE, file)
    if config.get("is_folding_model"):
        return _esmfold(path, "Hugging Face ESMFold", shape)
    return _esm2(path, "Hugging Face ESM-2", shape, read_shards(path))


def _official_esm2(path: Path) -> Contents:
    settings, tensors = read_official(path)
    return _esm2(path, "official ESM-2", _shape(vars(settings), _OFFICIAL, path), tensors)


def _shape(settings: Mapping[str, Any], names: tuple[str, ...], path: Path) -> AttentionShape:
    """The sizes of a language model that a file states.

    Raises:
        UserError: one is absent, or they make no model.
    """
    for name in names:
        if not isinstance(settings.get(name), int):
            raise UserError(f"{path}: {name} is {settings.get(name)}, not a number")
    try:
        return AttentionShape(*(settings[name] for name in names))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _esm2(path: Path, kind: Kind, shape: AttentionShape, tensors: dict[str, Tensor]) -> Contents:
    reasons = UNUSED_OFFICIAL if kind == "official ESM-2" else UNUSED_HUGGING_FACE
    return Contents(
        file=str(path),
        kind=kind,
        settings=_language_model_settings(shape) | {"model.language_model.weights": str(path)},
        differences=_language_model_differences(path, _empty_language_model(shape)),
        **_sorted(
            tensors,
            lambda name: "language model",
            lambda name: why_unused(name.removeprefix(LANGUAGE_MODEL), reasons),
        ),
    )


def _esmfold(path: Path, kind: Kind, shape: AttentionShape | None) -> Contents:
    """Looks into an ESMFold's file.

    Args:
        path: of the file.
        kind: its layout.
        shape: of the language model in it; None if there is none.
    """
    file = read_esmfold(path)
    settings = _esmfold_settings(path, file.sizes, shape)
    lm = _empty_language_model(shape or _shape_of(file.sizes))
    differences = _trunk_differences(file, lm, _model_config(settings, path))
    if shape is not None:
        differences = _both(differences, _language_model_differences(path, lm))
    return Contents(
        file=str(path),
        kind=kind,
        settings=settings,
        differences=differences,
        **_sorted(
            file.tensors,
            lambda name: next(part for pattern, part in PARTS.items() if re.match(pattern, name)),
            lambda name: _why_unused_in_esmfold(name, has_language_model=shape is not None),
        ),
    )


def _trunk_differences(file: EsmfoldFile, lm: LanguageModel, config: ModelConfig) -> Comparison:
    """Compares all but the language model."""
    with torch.device("meta"):
        model = FoldingModel(lm, config, bf16=False)
    found = compare(file.used, dict(released_tensors(model)))
    # Sizes were read from tensors; where one is missing, shapes are held against a guess.
    wrong = () if found.missing else found.wrong
    return replace(found, wrong=(*file.wrong_settings(), *wrong))


def _why_unused_in_esmfold(name: str, *, has_language_model: bool) -> str | None:
    if has_language_model and name.startswith(LANGUAGE_MODEL):
        return why_unused(name.removeprefix(LANGUAGE_MODEL), UNUSED_HUGGING_FACE)
    return why_unused(name, UNUSED)


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


def _esmfold_settings(path: Path, sizes: Sizes, shape: AttentionShape | None) -> Settings:
    of_trunk = {n: s for n, s in sizes.items() if not n.startswith("model.language_model.")}
    settings: Settings = {"model.language_model.name": published_name(sizes) or "custom"}
    if shape is not None:
        settings = _language_model_settings(shape) | {"model.language_model.weights": str(path)}
    elif settings["model.language_model.name"] == "custom":
        # The heads of a language model that is not in the file cannot be seen.
        settings |= {n: s for n, s in sizes.items() if n not in of_trunk}
    settings |= {"model.trunk": EsmfoldConfig.trunk, "model.esmfold.weights": str(path)}
    return settings | of_trunk


def _shape_of(sizes: Sizes) -> AttentionShape:
    """A language model of the layers and width that an ESMFold's file was made for."""
    published = SIZES["esm2_t36_3B_UR50D"]
    layers = sizes.get("model.language_model.layers", published.layers)
    return AttentionShape(layers, sizes.get("model.language_model.width", published.width), 1)


def _model_config(settings: Settings, path: Path) -> ModelConfig:
    """The settings as a run would read them.

    Raises:
        UserError: they make no model.
    """
    return config_of(nested(settings)["model"], ModelConfig, path)


def nested(settings: Settings) -> dict[str, Any]:
    """Settings as in a YAML file, a mapping for each dot."""
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        *above, leaf = name.split(".")
        branch = tree
        for key in above:
            branch = branch.setdefault(key, {})
        branch[leaf] = value
    return tree


def _empty_language_model(shape: AttentionShape) -> LanguageModel:
    try:
        with torch.device("meta"):
            return LanguageModel(shape)
    except RuntimeError as error:  # sizes beyond any tensor
        raise UserError(f"{shape}: no language model has these sizes ({error})") from error


def _language_model_differences(path: Path, lm: LanguageModel) -> Comparison:
    try:
        tensors, _ = split_frequencies(used_tensors(path, lm.shape), lm.shape, path)
    except UserError as error:
        return Comparison(wrong=(str(error),))
    return compare(tensors, dict(lm.official_tensors()))


def _sorted(
    tensors: Mapping[str, Tensor],
    part_of: Callable[[str], str],
    why: Callable[[str], str | None],
) -> dict[str, Any]:
    """The parts of a file and what is unused, in the order of the file."""
    used: dict[str, list[Tensor]] = {}
    unused: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        reason = why(name)
        if reason is None:
            used.setdefault(part_of(name), []).append(tensor)
        else:
            unused.setdefault(reason, []).append(name)
    return {
        "parts": tuple(_part(part, members) for part, members in used.items()),
        "unused": tuple(Unused(names[0], len(names), why) for why, names in unused.items()),
    }


def _part(name: str, tensors: list[Tensor]) -> Part:
    return Part(
        part=name,
        tensors=len(tensors),
        parameters=sum(tensor.numel() for tensor in tensors),
        types=", ".join(sorted(set(_types(tensors)))),
    )


def _types(tensors: list[Tensor]) -> Iterator[str]:
    return (str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
