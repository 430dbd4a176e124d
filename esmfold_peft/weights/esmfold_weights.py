"""The released ESMFold's weights: where they are, what they are called here, their fingerprint.

`resolved_head` is not among them: ESMFold has none, ours starts undecided.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from esmfold_peft.adapters.sizes import SIZES
from esmfold_peft.disk.files import require_file
from esmfold_peft.errors import UserError
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.trunks.base import Stack
from esmfold_peft.model.trunks.esmfold_v1 import EsmfoldStack
from esmfold_peft.weights.checkpoint_files import require_same
from esmfold_peft.weights.esm2_weights import URL, download, hash_of
from esmfold_peft.weights.esmfold_files import EsmfoldFile, Sizes, read_esmfold, sizes_of

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


def find_esmfold(weights: str) -> Path:
    """Finds the file of the released ESMFold, and downloads the official one if need be.

    Args:
        weights: "pretrained" for the official file in torch.hub's checkpoint folder, else a path.

    Raises:
        UserError: nothing is at the path, or the download fails.
    """
    if weights != "pretrained":
        path = Path(weights)
        require_file(path, "ESMFold weights")
        return path
    path = Path(torch.hub.get_dir()) / "checkpoints" / f"{NAME}.pt"
    if not path.exists():
        download(URL.format(name=NAME), path)
    return path


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
    file = read_esmfold(path)
    for line in file.wrong_settings():
        raise UserError(f"{path}: {line}")
    expected, found = dict(released_tensors(model)), file.used
    _require_sizes(sizes_of(expected, model.structure_module.layers), file)
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
            yield file_name(name), parameter.detach()


def file_name(name: str) -> str:
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


def _require_sizes(ours: Sizes, file: EsmfoldFile) -> None:
    """Refuses a file of other sizes, by the name of the setting to change.

    Raises:
        UserError: a size that the file shows differs.
    """
    sizes = file.sizes
    for setting, size in ours.items():
        if sizes.get(setting, size) != size:
            line = f"{file.path}: {setting} is {size}, the file has {sizes[setting]}"
            named = setting.startswith("model.language_model.") and published_name(sizes)
            raise UserError(f"{line} (model.language_model.name: {named})" if named else line)
