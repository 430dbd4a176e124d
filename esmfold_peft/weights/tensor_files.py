"""Files of tensors, read without running anything in them: pickles of torch and safetensors.

Tensors are mapped, not read.
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
"""Hugging Face's names of the weights in a folder; an index of shards is named after them."""

_DAMAGES = (
    *(OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError),
    *(AssertionError, struct.error, pickle.UnpicklingError),
)
"""Errors of torch's reader on damaged bytes."""


class Inert:
    """A harmless substitute for an object of a class that is not torch's, with its attributes."""

    state: dict[Any, Any]

    def __new__(cls, *_: object, **__: object) -> "Inert":
        """Takes the arguments of any class, and ignores them."""
        made = super().__new__(cls)
        made.state = {}
        return made

    def __setstate__(self, state: object) -> None:
        """Keeps what the pickle would have built the object from."""
        self.state = state if isinstance(state, dict) else {}


def read_pt(path: Path, *, inert: bool = False) -> dict[Any, Any]:
    """The content of a file of `torch.save`, empty if that is no dictionary.

    Objects of classes that are neither torch's nor argparse's are refused with a UserError, or, if
    `inert`, become `Inert`; in files in the format before torch 1.6 they are always refused.
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
    """A harmless substitute for each class and function of a pickle that torch does not know.

    torch's own names are not replaced, so that an unknown kind of tensor is refused.
    """
    named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    known = ("torch.", "argparse.Namespace")
    # The unpickler refuses to write the items of a defaultdict (omegaconf's metadata has one) to a
    # class of ours, so a function makes a plain dictionary.
    special = {"collections.defaultdict": _empty_dict}
    return [(special.get(name, Inert), name) for name in named if not name.startswith(known)]


def _empty_dict(*_: object) -> dict[Any, Any]:
    return {}


def _reason(error: BaseException) -> str:
    """The message of an error in one line, without torch's advice to read the file unsafely."""
    text = str(error)
    if text.startswith("Weights only load failed"):
        found = re.search(r"(?:WeightsUnpickler error: |\n\n(?=.+\n\nCheck the doc))(.+)", text)
        detail = "damaged" if found is None else found[1].partition(" Please use ")[0]
        return f"Weights only load failed: {detail}"
    if isinstance(error, LookupError):  # whose text is a byte of the file
        return "no file of torch.save, or damaged"
    return text.partition("\n")[0] or type(error).__name__


def read_shards(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, or of a Hugging Face folder with shards put together."""
    tensors: dict[str, Tensor] = {}
    for file in [path] if path.is_file() else _shards(path):
        if file.suffix != ".safetensors":
            tensors |= only_tensors(read_pt(file), file)
            continue
        try:
            tensors |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: {error}") from error
    return tensors


def _shards(folder: Path) -> list[Path]:
    """The files of a model's weights: one, or those that an index lists."""
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if index.exists():
            files = read_json(index).get("weight_map")
            if not isinstance(files, dict) or not all(isinstance(f, str) for f in files.values()):
                raise UserError(f"{index}: weight_map names no files")
            return [folder / file for file in sorted(set(files.values()))]
        if (folder / name).exists():
            return [folder / name]
    raise UserError(f"{folder}: it has neither {' nor '.join(WEIGHTS)}")


def only_tensors(content: dict[Any, Any], path: Path) -> dict[str, Tensor]:
    """The content of a file; a UserError if it is empty or has anything but tensors by name."""
    if not content:
        raise UserError(f"{path}: there are no tensors in it")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.is_nested:
            raise UserError(f'{path}: "{name}" is no tensor ({type(tensor).__name__})')
    return content


@dataclass(frozen=True)
class Comparison:
    """Names of missing and of unexpected tensors in a file, and sentences on other differences."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """A sentence for each difference."""
        missing = [f'tensor "{name}" is missing' for name in self.missing]
        unexpected = [f'tensor "{name}" is unexpected' for name in self.unexpected]
        return [*missing, *unexpected, *self.wrong]


def compare(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Comparison:
    """Compares a file's tensors with a model's, which may be on the meta device."""
    problems = {name: _problem(found[name], expected[name]) for name in expected if name in found}
    return Comparison(
        missing=tuple(sorted(expected.keys() - found.keys())),
        unexpected=tuple(sorted(found.keys() - expected.keys())),
        wrong=tuple(f'tensor "{name}" {problem}' for name, problem in problems.items() if problem),
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
    """Refuses a file whose tensors are not those of a model, by the first difference."""
    for line in compare(found, expected).lines():
        raise UserError(f"{path}: {line}")
