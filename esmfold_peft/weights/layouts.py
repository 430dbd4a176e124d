"""The layouts in which ESM-2 and ESMFold are published, and the one reader of them all.

Each model is published twice. The official layout is fair-esm's pickle (`*.pt`): "cfg" has the
settings, "model" the tensors. Hugging Face's is a folder with config.json and safetensors or
pickles of tensors, whole or in shards; its ESMFold has the language model too.
"""

import re
from argparse import Namespace
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.disk.files import read_json
from esmfold_peft.errors import UserError
from esmfold_peft.model.language_model import ALPHABET
from esmfold_peft.weights.tensor_files import Inert, only_tensors, read_pt, read_shards

Kind = Literal["official ESMFold", "Hugging Face ESMFold", "official ESM-2", "Hugging Face ESM-2"]

_PREFIX = "esm."
"""Of the language model's tensors in Hugging Face's layout."""

_OFFICIAL_SIZES = ("encoder_layers", "encoder_embed_dim", "encoder_attention_heads")
_HUGGING_FACE_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads")
"""Settings that are layers, width and heads of the language model."""

_HUGGING_FACE_REQUIRED = (
    *("model_type", *_HUGGING_FACE_SIZES, "intermediate_size", "vocab_size"),
    *("position_embedding_type", "token_dropout", "emb_layer_norm_before", "layer_norm_eps"),
)
"""Settings that make the architecture: with other values it is not our language model."""

UNUSED = {
    r"(esm\.)?lm_head\.": "head for masked residues",
    r"(esm\.)?contact_head\.": "head for contacts",
    r"(esm\.)?pooler\.": "pooling layer",
    r"(esm\.)?embeddings\.(position_ids|position_embeddings\.weight)$": (
        "leftover, positions are rotary"
    ),
    r"af2_to_esm$": "table of tokens, which the program has",
    r"positional_encoding\._float_tensor$": "leftover of fairseq",
    r"trunk\.structure_module\.(default_frames|group_idx|atom_mask|lit_positions)$": (
        "geometry of the residues, which the program has"
    ),
}
"""Tensors of the files that no model here needs, and why.

The official ESMFold has 3,923: the 3,915 weights and those of lm_head, af2_to_esm and the last two
lines. fair-esm's own loader ignores the latter in silence.
"""

ESMFOLD_SETTINGS: dict[tuple[str, ...], object] = {
    ("use_esm_attn_map",): False,
    ("esm_ablate_pairwise",): False,
    ("esm_ablate_sequence",): False,
    ("bypass_lm",): False,
    ("embed_aa",): True,
    ("trunk", "structure_module", "trans_scale_factor"): 10,
}
"""Settings of the published ESMFold that our model has no other value for."""

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


def official_settings(shape: AttentionShape) -> dict[str, Any]:
    """The settings that fair-esm reads from its checkpoints."""
    return dict(zip(_OFFICIAL_SIZES, astuple(shape), strict=True)) | {"token_dropout": True}


def hugging_face_settings(shape: AttentionShape) -> dict[str, Any]:
    """The config.json that Hugging Face publishes for an ESM-2 of these sizes."""
    return {
        "architectures": ["EsmForMaskedLM"],
        "model_type": "esm",
        **dict(zip(_HUGGING_FACE_SIZES, astuple(shape), strict=True)),
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


@dataclass(frozen=True, eq=False)
class PublishedFile:
    """A file of ESM-2 or ESMFold.

    Attributes:
        path: where it is.
        kind: its model and layout.
        settings: the language model's; empty in the official ESMFold, which has none.
        esmfold_settings: those of trunk, structure module and heads; see `look_up`.
        read: reads the tensors.
    """

    path: Path
    kind: Kind
    settings: dict[str, Any]
    esmfold_settings: object
    read: Callable[[], dict[str, Tensor]]

    @property
    def is_official(self) -> bool:
        """Whether it has fair-esm's layout, not Hugging Face's."""
        return self.kind.startswith("official")

    @property
    def is_esmfold(self) -> bool:
        """Whether it has a trunk, structure module and heads."""
        return self.kind.endswith("ESMFold")

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by the file's names; an official ESM-2's without prefixes."""
        return self.read()

    def shape(self) -> AttentionShape | None:
        """The sizes of the language model by the settings; None if there is no language model."""
        if self.kind == "official ESMFold":
            return None
        names = _OFFICIAL_SIZES if self.is_official else _HUGGING_FACE_SIZES
        for name in names:
            if not isinstance(found := self.settings.get(name), int):
                raise UserError(f"{self._settings_path}: {name} is {found}, not a number")
        try:
            return AttentionShape(*(self.settings[name] for name in names))
        except UserError as error:
            raise UserError(f"{self._settings_path}: {error}") from error

    def language_model(self) -> dict[str, Tensor]:
        """The tensors of the language model and its heads under fair-esm's names."""
        if self.is_official:
            return self.tensors
        return {
            official_name(name.removeprefix(_PREFIX)): tensor
            for name, tensor in self.tensors.items()
            if not (self.is_esmfold and is_of_trunk(name))
        }

    def used_by_language_model(self, shape: AttentionShape) -> dict[str, Tensor]:
        """The tensors that a language model of these sizes needs, under fair-esm's names.

        Settings of another architecture or other sizes are refused with a UserError.
        """
        wanted = official_settings(shape)
        if not self.is_official:
            settings = hugging_face_settings(shape)
            wanted = {name: settings[name] for name in _HUGGING_FACE_REQUIRED}
        for key, value in wanted.items():
            path, found = self._settings_path, self.settings.get(key)
            if key not in self.settings:
                raise UserError(f"{path}: no {key} in its configuration, not an ESM-2 checkpoint")
            if found != value:
                raise UserError(f"{path}: {key} is {found}, the language model has {value}")
        return {n: t for n, t in self.language_model().items() if not why_unused(n)}

    def used_by_trunk(self) -> dict[str, Tensor]:
        """All used tensors but the language model's; a UserError if there is no trunk."""
        if not any(name.startswith("trunk.") for name in self.tensors):
            raise UserError(f"{self.path}: not an ESMFold (it has no trunk)")
        return {n: t for n, t in self.tensors.items() if is_of_trunk(n) and not why_unused(n)}

    def wrong_settings(self) -> list[str]:
        """A sentence for each setting in which an ESMFold differs from the published one."""
        found = {keys: look_up(self.esmfold_settings, *keys) for keys in ESMFOLD_SETTINGS}
        return [
            f"{'.'.join(keys)} is {found[keys]}, the published ESMFold has {value}"
            for keys, value in ESMFOLD_SETTINGS.items()
            if found[keys] is not None and found[keys] != value
        ]

    @property
    def _settings_path(self) -> Path:
        return self.path if self.is_official else _hugging_face_config(self.path)


def why_unused(name: str) -> str | None:
    """Why no model needs a tensor of this name; None if one needs it."""
    return next((why for pattern, why in UNUSED.items() if re.match(pattern, name)), None)


def is_of_trunk(name: str) -> bool:
    """Whether a tensor of an ESMFold is not its language model's."""
    return not name.startswith(_PREFIX)


def read_published(path: Path, model: Literal["ESM-2", "ESMFold"] | None = None) -> PublishedFile:
    """Opens a file of ESM-2 or ESMFold.

    Args:
        path: official .pt file, or a Hugging Face folder (or a .safetensors or .bin file in it).
        model: what must be in it; None recognises either. An ESM-2 may be part of an ESMFold.

    Raises:
        UserError: the file cannot be read, or is not that.
    """
    if path.is_file() and path.suffix == ".pt":
        return _open_official(path, model or _model_of(path))
    return _open_hugging_face(path, model)


def _model_of(path: Path) -> Literal["ESM-2", "ESMFold"]:
    """The model in an official file, by the names of its tensors."""
    named = read_pt(path, inert=True).get("model")
    names = [str(name) for name in named] if isinstance(named, dict) else []
    if any(name.startswith("trunk.") for name in names):
        return "ESMFold"
    if any(name.endswith("embed_tokens.weight") for name in names):
        return "ESM-2"
    raise UserError(f"{path}: not recognised, neither an ESMFold nor an ESM-2")


def _open_official(path: Path, model: Literal["ESM-2", "ESMFold"]) -> PublishedFile:
    # The settings of an ESMFold are objects of omegaconf; an ESM-2 has none that are not torch's.
    content = read_pt(path, inert=model == "ESMFold")
    named, settings = content.get("model"), _attributes(content.get("cfg")).get("model")
    known = "cfg" in content and (model == "ESMFold" or isinstance(settings, Namespace))
    if not known or not isinstance(named, dict):
        raise UserError(f'{path}: not an {model} checkpoint (no "cfg" and "model")')
    tensors = only_tensors(named, path)
    if model == "ESMFold":
        return PublishedFile(path, "official ESMFold", {}, settings, lambda: tensors)
    prefix = re.compile(r"^encoder\.(sentence_encoder\.)?")
    plain = {prefix.sub("", name): tensor for name, tensor in tensors.items()}
    return PublishedFile(path, "official ESM-2", _attributes(settings), None, lambda: plain)


def _open_hugging_face(path: Path, model: Literal["ESM-2", "ESMFold"] | None) -> PublishedFile:
    file = _hugging_face_config(path)
    config = read_json(file)
    if model is None and config.get("model_type") != "esm":
        raise UserError(f"{path}: not recognised, its model_type is {config.get('model_type')}")
    wanted = {"model_type": "esm"} | ({"is_folding_model": True} if model == "ESMFold" else {})
    for key, value in wanted.items():
        if config.get(key) != value:
            raise UserError(f"{file}: {key} is {config.get(key)}, an {model} has {value}")
    kind = "Hugging Face ESMFold" if config.get("is_folding_model") else "Hugging Face ESM-2"
    esmfold = config.get("esmfold_config")
    return PublishedFile(path, kind, config, esmfold, lambda: read_shards(path))


def _hugging_face_config(path: Path) -> Path:
    """The config.json of Hugging Face's layout, given its folder or a file of weights in it."""
    if path.is_file() and path.suffix not in (".safetensors", ".bin"):
        raise UserError(
            f"{path}: neither an official .pt file nor a Hugging Face .safetensors or .bin"
        )
    return (path if path.is_dir() else path.parent) / "config.json"


def look_up(settings: object, *keys: str) -> object:
    """A value in nested settings, by keys from the outside to the inside; None if there is none.

    Settings are dictionaries, argparse's Namespace, or what `read_pt` made of omegaconf's objects,
    as fair-esm's are.
    """
    for key in keys:
        settings = _attributes(settings).get(key)
    value = settings.state.get("_val") if isinstance(settings, Inert) else settings
    return value if isinstance(value, (bool, int, float, str)) else None


def _attributes(settings: object) -> dict[Any, Any]:
    """The names and values of settings, one level deep; see `look_up`."""
    if isinstance(settings, Namespace):
        return vars(settings)
    if isinstance(settings, Inert):
        settings = settings.state.get("_content", settings.state)
    return settings if isinstance(settings, dict) else {}
