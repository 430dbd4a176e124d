"""The released ESMFold's weights: where they are, their sizes, their names here, their fingerprint.

`resolved_head` is not among them: ESMFold has none, ours starts undecided.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from esmfold_peft.adapters.base import SIZES
from esmfold_peft.disk.files import require_file
from esmfold_peft.errors import UserError
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.trunks.base import Stack
from esmfold_peft.model.trunks.esmfold_v1 import EsmfoldStack
from esmfold_peft.protein.residues import ATOM37
from esmfold_peft.weights.esm2_weights import hash_of, official_file
from esmfold_peft.weights.layouts import PublishedFile, look_up, read_published
from esmfold_peft.weights.tensor_files import require_same

NAME = "esmfold_3B_v1"
"""fair-esm's name of the official file."""

FILE_NAMES = {
    "trunk.sequence_embedding.mix": "esm_s_combine",
    "trunk.sequence_embedding.project": "esm_s_mlp",
    "trunk.sequence_embedding.amino_acid": "embedding",
    "trunk.relative_position.embedding": "trunk.pairwise_positional_embedding.embedding",
    "trunk.recycle_m": "trunk.recycle_s_norm",
    "trunk.recycle_z": "trunk.recycle_z_norm",
    "trunk.recycle_distogram.embedding": "trunk.recycle_disto",
    "trunk.stack.blocks": "trunk.blocks",
    "trunk.stack.to_structure_s": "trunk.trunk2sm_s",
    "trunk.stack.to_structure_z": "trunk.trunk2sm_z",
    "structure_module": "trunk.structure_module",
    "distogram_head.linear": "distogram_head",
    "pae_head.linear": "ptm_head",
    "plddt_head.layers": "lddt_head",
}
"""Beginnings of our names and of the files'; what follows them is the same."""

PUBLISHED_LAYERS = 8
"""Layers of the structure module, whose number cannot be seen in their shared weights."""

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
"""Sizes of an ESMFold by the settings that they are, without those that its tensors do not show."""


def find_esmfold(weights: str) -> Path:
    """The file of the released ESMFold: a path, or "pretrained" for the official one."""
    if weights == "pretrained":
        return official_file(NAME)
    require_file(Path(weights), "ESMFold weights")
    return Path(weights)


def load_esmfold(model: FoldingModel, path: Path) -> None:
    """Fills trunk, structure module and heads with the released weights, in float32.

    The language model's weights, which Hugging Face's file has too, are `load_esm2`'s.

    Args:
        model: with the trunk esmfold_v1. It is changed only if all of the file fits.
        path: official .pt file, or a Hugging Face folder (or a .safetensors or .bin file in it).

    Raises:
        UserError: the file cannot be read, is of another architecture or other sizes, or lacks a
            tensor, has one too many or one of another shape.
    """
    file = read_published(path, "ESMFold")
    found = file.used_by_trunk()
    for line in file.wrong_settings():
        raise UserError(f"{path}: {line}")
    expected = dict(released_tensors(model))
    _require_sizes(_sizes_of(expected, model.structure_module.layers), file)
    require_same(found, expected, path)
    for name, tensor in expected.items():
        tensor.copy_(found[name])


PUBLISHED: dict[type[Stack], Callable[[FoldingModel, str], None]] = {
    EsmfoldStack: lambda model, weights: load_esmfold(model, find_esmfold(weights))
}
"""How a folding model takes the published weights ("pretrained", or a path) of its trunk."""


def released_tensors(model: FoldingModel) -> Iterator[tuple[str, Tensor]]:
    """A model's weights that ESMFold has too, under the files' names; views that write through."""
    for name, parameter in model.named_parameters():
        if not name.startswith(("language_model.", "resolved_head.")):
            yield _file_name(name), parameter.detach()


def _file_name(name: str) -> str:
    """The released files' name of a parameter of `FoldingModel`."""
    for ours, theirs in FILE_NAMES.items():
        if f"{name}.".startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    raise ValueError(f"{name} has no counterpart in the released ESMFold")


def folding_hash(model: FoldingModel) -> str:
    """SHA-256 of all parameters outside the language model: our names, types, shapes and bytes."""
    return hash_of(
        (name, parameter.detach())
        for name, parameter in model.named_parameters()
        if not name.startswith("language_model.")
    )


def published_name(sizes: Sizes) -> str | None:
    """The official name of the language model whose layers and width a file was made for."""
    wanted = [sizes.get(f"model.language_model.{size}") for size in ("layers", "width")]
    return next((name for name, s in SIZES.items() if [s.layers, s.width] == wanted), None)


def file_sizes(file: PublishedFile) -> Sizes:
    """The sizes that a file shows."""
    layers = PUBLISHED_LAYERS
    for name in ("no_blocks", "num_blocks"):  # fair-esm's name of it, and Hugging Face's
        found = look_up(file.esmfold_settings, "trunk", "structure_module", name)
        layers = found if isinstance(found, int) else layers
    return _sizes_of(file.tensors, layers)


def _require_sizes(ours: Sizes, file: PublishedFile) -> None:
    """Refuses a file of other sizes, by the name of the setting to change."""
    sizes = file_sizes(file)
    for setting, size in ours.items():
        if sizes.get(setting, size) != size:
            line = f"{file.path}: {setting} is {size}, the file has {sizes[setting]}"
            named = setting.startswith("model.language_model.") and published_name(sizes)
            raise UserError(f"{line} (model.language_model.name: {named})" if named else line)


def _sizes_of(tensors: Mapping[str, Tensor], layers: int) -> Sizes:
    """The sizes of an ESMFold by its weights; `layers` are those of the structure module."""
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
