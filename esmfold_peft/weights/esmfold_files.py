"""The released ESMFold's files, official and Hugging Face's, and the sizes that they show."""

import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from esmfold_peft.disk.files import read_json
from esmfold_peft.errors import UserError
from esmfold_peft.protein.residues import ATOM37
from esmfold_peft.weights.checkpoint_files import (
    Inert,
    hugging_face_config,
    is_official,
    only_tensors,
    read_pt,
    read_shards,
    why_unused,
)

LANGUAGE_MODEL = "esm."
"""Prefix of the language model's weights, which only Hugging Face's file has."""

UNUSED = {
    r"esm\.": "language model, which model.language_model names",
    r"lm_head\.": "head for masked residues",
    r"af2_to_esm$": "table of tokens, which the program has",
    r"positional_encoding\._float_tensor$": "leftover of fairseq",
    r"trunk\.structure_module\.(default_frames|group_idx|atom_mask|lit_positions)$": (
        "geometry of the residues, which the program has"
    ),
}
"""Entries of an ESMFold's file that fill nothing in the trunk, structure module and heads, and why.

The official file has 3,923 entries: the 3,915 weights and those of lm_head, af2_to_esm and the last
two lines. fair-esm's own loader passes over the latter in silence.
"""

PUBLISHED_LAYERS = 8
"""Layers of the structure module, whose number cannot be seen in their shared weights."""

ARCHITECTURE: dict[tuple[str, ...], object] = {
    ("use_esm_attn_map",): False,
    ("esm_ablate_pairwise",): False,
    ("esm_ablate_sequence",): False,
    ("bypass_lm",): False,
    ("embed_aa",): True,
    ("trunk", "structure_module", "trans_scale_factor"): 10,
}
"""Settings of the published model that our model has no other value for."""

_IPA = "trunk.structure_module.ipa."

_VISIBLE = {
    "model.esmfold.c_s": ("esm_s_mlp.3.weight", 0),
    "model.esmfold.c_z": ("trunk.recycle_z_norm.weight", 0),
    "model.esmfold.c_structure": ("trunk.trunk2sm_s.weight", 0),
    "model.esmfold.heads": ("trunk.blocks.0.pair_to_sequence.linear.weight", 0),
    "model.esmfold.heads_pair": ("trunk.blocks.0.tri_att_start.linear.weight", 0),
    "model.structure.heads": (f"{_IPA}head_weights", 0),
    "model.structure.c_angle": ("trunk.structure_module.angle_resnet.linear_in.weight", 0),
    "model.distogram_bins": ("distogram_head.weight", 0),
    "model.pae_bins": ("ptm_head.weight", 0),
    "model.c_plddt": ("lddt_head.1.weight", 0),
    "model.language_model.width": ("esm_s_mlp.1.weight", 1),
}
"""Settings that are a dimension of a tensor."""

_COUNTED = {
    "model.esmfold.blocks": r"trunk\.blocks\.(\d+)\.",
    "model.structure.angle_blocks": r"trunk\.structure_module\.angle_resnet\.layers\.(\d+)\.",
}
"""Settings that are a number of modules with the same pattern of names."""

Sizes = dict[str, int]
"""Sizes of an ESMFold by the settings that they are; one that its tensors do not show is absent."""


@dataclass(frozen=True, eq=False)
class EsmfoldFile:
    """All of a released ESMFold's file.

    Attributes:
        path: where it was read.
        tensors: by the file's names.
        settings: as published, to be read by `look_up`.
    """

    path: Path
    tensors: dict[str, Tensor]
    settings: object

    @property
    def used(self) -> dict[str, Tensor]:
        """What fills trunk, structure module and heads, or would if it were expected."""
        return {name: t for name, t in self.tensors.items() if not why_unused(name, UNUSED)}

    @property
    def sizes(self) -> Sizes:
        """The sizes that the file shows."""
        layers = PUBLISHED_LAYERS
        for name in ("no_blocks", "num_blocks"):  # fair-esm's name of it, and Hugging Face's
            found = look_up(self.settings, "trunk", "structure_module", name)
            layers = found if isinstance(found, int) else layers
        return sizes_of(self.tensors, layers)

    def wrong_settings(self) -> list[str]:
        """A sentence for each setting that makes it another architecture than the published one."""
        found = {keys: look_up(self.settings, *keys) for keys in ARCHITECTURE}
        return [
            f"{'.'.join(keys)} is {found[keys]}, the published ESMFold has {value}"
            for keys, value in ARCHITECTURE.items()
            if found[keys] is not None and found[keys] != value
        ]


def read_esmfold(path: Path) -> EsmfoldFile:
    """Reads a released ESMFold.

    Args:
        path: official .pt file, or a Hugging Face folder (or a .safetensors or .bin file in it).

    Raises:
        UserError: the file cannot be read or is no ESMFold.
    """
    file = _read_official(path) if is_official(path) else _read_hugging_face(path)
    if not any(name.startswith("trunk.") for name in file.tensors):
        raise UserError(f"{path}: not an ESMFold (it has no trunk)")
    return file


def _read_official(path: Path) -> EsmfoldFile:
    match read_pt(path, inert=True):
        case {"cfg": settings, "model": dict() as named}:
            tensors = only_tensors(named, path)
            return EsmfoldFile(path, tensors, _attributes(settings).get("model"))
    raise UserError(f'{path}: not an ESMFold checkpoint (no "cfg" and "model")')


def _read_hugging_face(path: Path) -> EsmfoldFile:
    file = hugging_face_config(path)
    config = read_json(file)
    for key, value in {"model_type": "esm", "is_folding_model": True}.items():
        if config.get(key) != value:
            raise UserError(f"{file}: {key} is {config.get(key)}, an ESMFold has {value}")
    return EsmfoldFile(path, read_shards(path), config.get("esmfold_config"))


def look_up(settings: object, *keys: str) -> object:
    """A value in nested settings, None where there is none.

    Args:
        settings: a dictionary, argparse's Namespace, or what `read_pt` made of an object of
            omegaconf, as fair-esm's settings are.
        keys: names from the outside to the inside.
    """
    for key in keys:
        settings = _attributes(settings).get(key)
    value = settings.state.get("_val") if isinstance(settings, Inert) else settings
    return value if isinstance(value, (bool, int, float, str)) else None


def _attributes(settings: object) -> dict[Any, Any]:
    if isinstance(settings, Namespace):
        return vars(settings)
    if isinstance(settings, Inert):
        settings = settings.state.get("_content", settings.state)
    return settings if isinstance(settings, dict) else {}


def sizes_of(tensors: Mapping[str, Tensor], layers: int) -> Sizes:
    """The sizes of an ESMFold.

    Args:
        tensors: its weights by the file's names.
        layers: of the structure module.
    """
    sizes = {
        setting: tensors[name].shape[dimension]
        for setting, (name, dimension) in _VISIBLE.items()
        if name in tensors and dimension < tensors[name].ndim
    }
    for setting, pattern in _COUNTED.items():
        sizes[setting] = len({m[1] for name in tensors if (m := re.match(pattern, name))})
    return {**sizes, **_derived(tensors, sizes), "model.structure.layers": layers}


def _derived(tensors: Mapping[str, Tensor], visible: Sizes) -> Sizes:
    """Settings that are part of a dimension."""
    rows = {name: t.shape[0] for name, t in tensors.items() if t.ndim}
    sizes: Sizes = {}
    if "esm_s_combine" in rows:
        sizes["model.language_model.layers"] = rows["esm_s_combine"] - 1
    if (distances := "trunk.pairwise_positional_embedding.embedding.weight") in rows:
        sizes["model.relative_positions"] = rows[distances] // 2 - 1
    if "lddt_head.3.weight" in rows:
        sizes["model.plddt_bins"] = rows["lddt_head.3.weight"] // len(ATOM37)
    of_head = {
        name: rows[f"{_IPA}{name}.weight"] // max(visible.get("model.structure.heads", 1), 1)
        for name in ("linear_q", "linear_q_points", "linear_kv_points")
        if f"{_IPA}{name}.weight" in rows and "model.structure.heads" in visible
    }
    if len(of_head) == 3:
        queries, keys_values = of_head["linear_q_points"] // 3, of_head["linear_kv_points"] // 3
        sizes["model.structure.c_ipa"] = of_head["linear_q"]
        sizes["model.structure.query_points"] = queries
        sizes["model.structure.value_points"] = keys_values - queries
    return sizes
