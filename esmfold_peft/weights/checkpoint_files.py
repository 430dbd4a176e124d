"""Files of weights in their two layouts, of which nothing is run; tensors are mapped, not read.

The official one is a pickle of torch (`*.pt`). Hugging Face's is a folder with config.json and
safetensors or pickles of tensors, whole or in shards.
"""

import pickle
import re
import struct
import zipfile
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from esmfold_peft.disk.files import read_json
from esmfold_peft.errors import UserError

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""What Hugging Face calls the weights in a folder; an index of shards is named after them."""

_DAMAGES = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    struct.error,
    pickle.UnpicklingError,
)
"""What torch's reader raises on damaged bytes, depending on where it stumbles."""


class Inert:
    """Stands for an object of a pickle whose class is not torch's: it does nothing.

    Attributes:
        state: what the object's attributes would have been.
    """

    state: dict[Any, Any]

    def __new__(cls, *_: object, **__: object) -> "Inert":
        """Takes the arguments of any class, and leaves them."""
        made = super().__new__(cls)
        made.state = {}
        return made

    def __setstate__(self, state: object) -> None:
        """Keeps what the pickle would have built the object from."""
        self.state = state if isinstance(state, dict) else {}


def is_official(path: Path) -> bool:
    """Whether a path is an official .pt file; otherwise it is Hugging Face's layout."""
    return path.is_file() and path.suffix == ".pt"


def read_pt(path: Path, *, inert: bool = False) -> dict[Any, Any]:
    """The content of a file of `torch.save`, empty if that is no dictionary.

    Args:
        path: the file.
        inert: objects of classes that are neither torch's nor argparse's become `Inert`. Without
            it, and in files in the format before torch 1.6, they are refused.

    Raises:
        UserError: the file cannot be read, or has objects that it must not have.
    """
    try:
        zipped = zipfile.is_zipfile(path)
        stand_ins = _stand_ins(path) if inert and zipped else []
        with torch.serialization.safe_globals([Namespace, *stand_ins]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except _DAMAGES as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)})") from error
    return content if isinstance(content, dict) else {}


def _stand_ins(path: Path) -> list[Callable | tuple[Callable, str]]:
    """Something harmless for every class and function that a pickle names and torch does not know.

    Names of torch's own are left out, so that an unknown kind of tensor is refused.
    """
    named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    known = ("torch.", "argparse.Namespace")
    # The unpickler writes the items of a defaultdict, which omegaconf's metadata has, to no class
    # of ours.
    special = {"collections.defaultdict": _empty_dict}
    return [(special.get(name, Inert), name) for name in named if not name.startswith(known)]


def _empty_dict(*_: object) -> dict[Any, Any]:
    return {}


def _reason(error: BaseException) -> str:
    """What an error says, in one line; torch's advice to read the file unsafely is left out."""
    text = str(error)
    if text.startswith("Weights only load failed"):
        found = re.search(r"(?:WeightsUnpickler error: |\n\n(?=.+\n\nCheck the doc))(.+)", text)
        detail = "damaged" if found is None else found[1].partition(" Please use ")[0]
        return f"Weights only load failed: {detail}"
    if isinstance(error, LookupError):  # whose text is a byte of the file
        return "no file of torch.save, or damaged"
    return text.partition("\n")[0] or type(error).__name__


def hugging_face_config(path: Path) -> Path:
    """The config.json of Hugging Face's layout.

    Args:
        path: the folder, or a .safetensors or .bin file in it.

    Raises:
        UserError: the path is some other file.
    """
    if path.is_file() and path.suffix not in (".safetensors", ".bin"):
        raise UserError(
            f"{path}: neither an official .pt file nor a Hugging Face .safetensors or .bin"
        )
    return (path if path.is_dir() else path.parent) / "config.json"


def read_shards(path: Path) -> dict[str, Tensor]:
    """All tensors of Hugging Face's layout by the file's names, shards put together.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    tensors: dict[str, Tensor] = {}
    for file in _shards(path):
        tensors |= _read_shard(file)
    return tensors


def _read_shard(file: Path) -> dict[str, Tensor]:
    if file.suffix != ".safetensors":
        return only_tensors(read_pt(file), file)
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: {error}") from error


def _shards(path: Path) -> list[Path]:
    """The files of a model's weights: one, or those that an index lists."""
    if path.is_file():
        return [path]
    for name in WEIGHTS:
        index = path / f"{name}.index.json"
        if index.exists():
            return _listed(index)
        if (path / name).exists():
            return [path / name]
    raise UserError(f"{path}: it has neither {' nor '.join(WEIGHTS)}")


def _listed(index: Path) -> list[Path]:
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise UserError(f"{index}: weight_map names no files")
    return [index.parent / name for name in sorted(set(files.values()))]


def only_tensors(content: dict[Any, Any], path: Path) -> dict[str, Tensor]:
    """The content of a file that must hold tensors by name and nothing else.

    Raises:
        UserError: it is empty, or holds something else.
    """
    if not content:
        raise UserError(f"{path}: there are no tensors in it")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.is_nested:
            raise UserError(f'{path}: "{name}" is no tensor ({type(tensor).__name__})')
    return content


def why_unused(name: str, reasons: Mapping[str, str]) -> str | None:
    """Why a model does without a tensor of a file; None for one that it needs.

    Args:
        name: of the tensor.
        reasons: by patterns that match from the start of a name.
    """
    return next((why for pattern, why in reasons.items() if re.match(pattern, name)), None)


@dataclass(frozen=True)
class Comparison:
    """What a file lacks of a model, and the other way round.

    Attributes:
        missing: names of tensors that the model has and the file lacks.
        unexpected: names of tensors that the file has and the model lacks.
        wrong: what else is wrong, a sentence each.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """A sentence for each difference."""
        missing = [f'tensor "{name}" is missing' for name in self.missing]
        return [
            *missing,
            *(f'tensor "{name}" is unexpected' for name in self.unexpected),
            *self.wrong,
        ]


def compare(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Comparison:
    """Compares tensors by name, shape and type.

    Args:
        found: in a file.
        expected: in a model, which may be on the meta device.
    """
    shared = [name for name in expected if name in found]
    return Comparison(
        tuple(sorted(expected.keys() - found.keys())),
        tuple(sorted(found.keys() - expected.keys())),
        tuple(
            f'tensor "{name}" {problem}'
            for name in shared
            if (problem := _problem(found[name], expected[name]))
        ),
    )


def _problem(found: Tensor, expected: Tensor) -> str:
    if found.shape != expected.shape:
        return f"has shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    if found.is_meta:
        return "has no numbers"
    if not found.is_floating_point() or found.layout is not torch.strided:
        return f"is of type {found.dtype} ({found.layout}), not plain numbers"
    return ""


def require_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Refuses a file whose tensors are not those of a model.

    Raises:
        UserError: one is missing, one too many, or one of another shape or type; the first is
            named.
    """
    for line in compare(found, expected).lines():
        raise UserError(f"{path}: {line}")
