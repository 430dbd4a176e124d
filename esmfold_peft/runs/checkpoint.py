"""Checkpoints: what a run goes on from, the same files whatever engine wrote them.

checkpoints/step_00001000/
  weights.safetensors   what the run's start does not give back: trained tensors, and what was drawn
  ema.safetensors       the moving average of the trained tensors
  adam.safetensors      Adam's moments and counts by the names of the tensors
  state.json            step, guard, order of the samples, hashes of base weights and files

Tensors are whole and have their names in the model, so that any engine and any number of processes
goes on from them, and nothing but safetensors is needed to read them. The frozen language model is
not among them. Nothing that is read can execute code. A folder has its name only when all of it is
on the disk.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from esmfold_peft.disk.files import make_folder, read_json, sync_folder, write_atomically
from esmfold_peft.errors import UserError
from esmfold_peft.runs.adam_moments import AdamMoments

CHECKPOINTS = "checkpoints"
WEIGHTS, AVERAGE, ADAM, STATE = (
    "weights.safetensors",
    "ema.safetensors",
    "adam.safetensors",
    "state.json",
)
FORMAT = 1

_PREFIX = "step_"


@dataclass(frozen=True)
class Best:
    """The best validation so far.

    Attributes:
        step: optimizer steps done.
        score: mean lDDT-Cα of the moving average, 0 to 1.
    """

    step: int
    score: float


@dataclass(frozen=True)
class State:
    """Where a run stands, but for its tensors.

    Attributes:
        step: optimizer steps done.
        ema_updates: updates of the moving average.
        skipped_steps: steps left out because their gradient was not finite.
        guard: state of the divergence guard.
        order: what decides which chains a step sees (`datasets.position`).
        validation: hash of the manifest of validation chains; None without.
        base_sha256: of the language model's base weights.
        esmfold_sha256: of ESMFold's published weights, where a run starts with them.
        processes: that trained; another number may go on.
        validated: whether the validation due at this step is done.
        score: mean lDDT-Cα of the newest validation, 0 to 1; None without.
        best: the best validation so far.
    """

    step: int
    ema_updates: int
    skipped_steps: int
    guard: dict[str, Any]
    order: dict[str, Any]
    validation: str | None
    base_sha256: str
    esmfold_sha256: str | None
    processes: int
    validated: bool
    score: float | None
    best: Best | None


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """All that a run goes on from.

    Attributes:
        state: where it stands.
        weights: tensors by name.
        average: the trained ones' moving average.
        adam: the trained ones' moments; of none before the first step.
    """

    state: State
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    adam: dict[str, AdamMoments]


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return run / CHECKPOINTS / f"{_PREFIX}{step:08d}"


def checkpoint_steps(run: Path) -> list[int]:
    """The steps of which there are checkpoints, in order."""
    folders = (run / CHECKPOINTS).glob(f"{_PREFIX}*")
    names = (folder.name.removeprefix(_PREFIX) for folder in folders)
    return sorted(int(name) for name in names if name.isdigit())


def find_step(run: Path, name: str) -> int:
    """The step of a checkpoint.

    Args:
        run: folder of the run.
        name: last, best (by validation), or a number.

    Raises:
        UserError: there is no such checkpoint; those that are there are named.
    """
    steps = checkpoint_steps(run)
    if not steps:
        raise UserError(f"{run / CHECKPOINTS}: no checkpoints")
    if name == "last":
        return steps[-1]
    if name == "best":
        best = read_state(run, steps[-1]).best
        if best is None:
            raise UserError(f"checkpoint: {run} has not been validated, none is the best")
        return best.step
    if name.isdigit() and int(name) in steps:
        return int(name)
    raise UserError(f"checkpoint: {name} is not last, best or one of {', '.join(map(str, steps))}")


def write_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint under another name, and gives it its own when it is on the disk.

    Args:
        run: folder of the run.
        checkpoint: with tensors on the CPU.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    target = checkpoint_folder(run, checkpoint.state.step)
    temporary = target.with_name(f".{target.name}.tmp")
    make_folder(target.parent)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for name, tensors in _files(checkpoint).items():
            save_file(tensors, temporary / name)
        _write_state(temporary, checkpoint.state, _hashes(temporary))
        for path in temporary.iterdir():
            _sync(path)
        sync_folder(temporary)
        _remove(target)
        temporary.rename(target)
        sync_folder(target.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{target}: cannot be written ({error})") from error


def mark_validated(run: Path, state: State) -> None:
    """Writes into a checkpoint where the run stands after the validation of its step.

    Args:
        run: folder of the run.
        state: of the checkpoint's step.
    """
    folder = checkpoint_folder(run, state.step)
    _, hashes = _read_state(folder)
    _write_state(folder, state, hashes)


def read_state(run: Path, step: int) -> State:
    """Where a run stood at a step, without its tensors.

    Raises:
        UserError: there is no such checkpoint, or its state cannot be read.
    """
    return _read_state(checkpoint_folder(run, step))[0]


def read_checkpoint(run: Path, step: int) -> Checkpoint:
    """Reads a checkpoint and checks that its files are those that were written.

    Raises:
        UserError: there is none, or a file is missing or damaged; the file is named.
    """
    folder = checkpoint_folder(run, step)
    state, hashes = _read_state(folder)
    weights, average, adam = (
        _read_tensors(folder / name, hashes.get(name)) for name in (WEIGHTS, AVERAGE, ADAM)
    )
    return Checkpoint(state, weights, average, _moments(adam, folder / ADAM))


def read_weights(run: Path, step: int, *, raw: bool) -> dict[str, Tensor]:
    """The tensors of a model: with the moving average of what was trained, or as they were.

    Raises:
        UserError: there is no such checkpoint, or a file is missing or damaged.
    """
    folder = checkpoint_folder(run, step)
    _, hashes = _read_state(folder)
    weights = _read_tensors(folder / WEIGHTS, hashes.get(WEIGHTS))
    return weights if raw else weights | _read_tensors(folder / AVERAGE, hashes.get(AVERAGE))


def forget_newer(run: Path, step: int) -> None:
    """Removes the checkpoints of later steps than the one that is gone on from: they are damaged.

    Otherwise they would count among the newest, in place of whole ones.

    Args:
        run: folder of the run.
        step: of the checkpoint that is gone on from; 0 for the beginning.
    """
    for newer in checkpoint_steps(run):
        if newer > step:
            _remove(checkpoint_folder(run, newer))


def prune_checkpoints(run: Path, keep_last: int, best: Best | None) -> None:
    """Removes all checkpoints but the newest ones and the best one, and what a kill left half.

    Args:
        run: folder of the run.
        keep_last: how many of the newest to keep.
        best: the best validation so far.
    """
    steps = checkpoint_steps(run)
    kept = {*steps[-keep_last:], best.step if best else -1}
    for step in steps:
        if step not in kept:
            _remove(checkpoint_folder(run, step))
    for left in (run / CHECKPOINTS).glob(f".{_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)


def _files(checkpoint: Checkpoint) -> dict[str, dict[str, Tensor]]:
    adam = {
        f"{name}/{part.name}": torch.as_tensor(getattr(moments, part.name))
        for name, moments in checkpoint.adam.items()
        for part in fields(AdamMoments)
    }
    files = {WEIGHTS: checkpoint.weights, AVERAGE: checkpoint.average, ADAM: adam}
    return {file: {n: t.contiguous() for n, t in ts.items()} for file, ts in files.items()}


def _moments(tensors: Mapping[str, Tensor], path: Path) -> dict[str, AdamMoments]:
    names = dict.fromkeys(key.rpartition("/")[0] for key in tensors)
    try:
        return {
            name: AdamMoments(
                exp_avg=tensors[f"{name}/exp_avg"],
                exp_avg_sq=tensors[f"{name}/exp_avg_sq"],
                step=int(tensors[f"{name}/step"]),
            )
            for name in names
        }
    except KeyError as error:
        raise UserError(f"{path}: tensor {error} is missing") from error


def _hashes(folder: Path) -> dict[str, str]:
    return {name: _sha256(folder / name) for name in (WEIGHTS, AVERAGE, ADAM)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_state(folder: Path, state: State, hashes: dict[str, str]) -> None:
    content = {"format": FORMAT, **asdict(state), "files_sha256": hashes}
    write_atomically(folder / STATE, json.dumps(content, indent=2) + "\n")


def _read_state(folder: Path) -> tuple[State, dict[str, str]]:
    path = folder / STATE
    if not path.is_file():
        raise UserError(f"{folder}: no such checkpoint")
    content = read_json(path)
    if content.pop("format", None) != FORMAT:
        raise UserError(f"{path}: not a checkpoint of format {FORMAT}")
    hashes = content.pop("files_sha256", None)
    names = {field.name for field in fields(State)}
    if content.keys() != names or not isinstance(hashes, dict):
        raise UserError(f"{path}: {', '.join(sorted(names ^ content.keys()))} missing or unknown")
    try:
        best = content.pop("best")
        return State(**content, best=best and Best(**best)), hashes
    except TypeError as error:
        raise UserError(f"{path}: {error}") from error


def _read_tensors(path: Path, expected: str | None) -> dict[str, Tensor]:
    try:
        found = _sha256(path)
        if found != expected:
            raise UserError(f"{path}: damaged (its SHA-256 is not the one in {STATE})")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _remove(folder: Path) -> None:
    """Takes a folder's name away before its contents: what has the name is whole."""
    if folder.exists():
        gone = folder.with_name(f".{folder.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
