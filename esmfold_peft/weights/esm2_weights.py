"""ESM-2's weights: where they are, how they fill a language model, and their fingerprint."""

import hashlib
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from esmfold_peft.adapters.base import AttentionShape, size_of
from esmfold_peft.disk.files import require_file
from esmfold_peft.errors import UserError
from esmfold_peft.model.language_model import LanguageModel, exact_frequencies
from esmfold_peft.weights.layouts import read_published
from esmfold_peft.weights.tensor_files import require_same

_URL = "https://dl.fbaipublicfiles.com/fair-esm/models/{name}.pt"
"""Where fair-esm publishes its checkpoints."""


def find_weights(name: str, weights: str) -> Path:
    """The file with a model's weights: a path, or "pretrained" for the official one of that name.

    Raises:
        UserError: the name is unknown, the path does not exist, or the download fails.
    """
    if weights != "pretrained":
        path = Path(weights)
        require_file(path, "language model weights")
        return path
    size_of(name)
    return official_file(name)


def official_file(name: str) -> Path:
    """An official file of fair-esm's in torch.hub's checkpoint folder, downloaded if absent.

    torch.hub downloads to a temporary name and renames it.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / f"{name}.pt"
    if path.exists():
        return path
    url = _URL.format(name=name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path))
    except (OSError, HTTPException) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{url}: download failed ({reason}); put the file at {path} by hand"
        ) from error
    return path


@torch.no_grad()
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
    used = read_published(path, "ESM-2").used_by_language_model(lm.shape)
    tensors, frequencies = split_frequencies(used, lm.shape, path)
    require_same(tensors, dict(lm.official_tensors()), path)
    for name, parameter in list(lm.base_parameters()):
        if parameter.is_meta:
            owner, _, leaf = name.rpartition(".")
            fresh = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
            setattr(lm.get_submodule(owner), leaf, nn.Parameter(fresh, parameter.requires_grad))
    for name, tensor in lm.official_tensors():
        tensor.copy_(tensors[name])
    lm.rotary_frequencies.copy_(frequencies)


def split_frequencies(
    tensors: dict[str, Tensor], shape: AttentionShape, path: Path
) -> tuple[dict[str, Tensor], Float[Tensor, "half"]]:
    """The tensors of a file without its rotary frequencies, and these in float32.

    A file without them means those of the formula. Where it has them they must not be computed:
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

    The rotary frequencies, which are read from the weights' file too, come last. Adapters and runs
    name the model under them by this fingerprint.
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
