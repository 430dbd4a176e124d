"""Checkpoints, from which a run resumes: the same files for every engine.

checkpoints/step_00001000/
  weights.safetensors   tensors that the settings do not rebuild: trained ones, and what was drawn
  ema.safetensors       the moving average of the trained tensors
  adam.safetensors      Adam's moments and counts by the names of the tensors
  state.json            step, guard, order of the samples, hashes of base weights and files

Tensors are whole and have their names in the model, so that any engine and any number of processes
can resume from them, and safetensors alone reads them. The frozen language model is not among them.
Reading a checkpoint cannot run code. A folder has its name only when all of it is on the disk.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from esmfold_peft.disk.files import make_folder, read_json, sync_folder, write_atomically
from esmfold_peft.errors import UserError

CHECKPOINTS = "checkpoints"
WEIGHTS, AVERAGE, ADAM = "weights.safetensors", "ema.safetensors", "adam.safetensors"
STATE = "state.json"
FORMAT = 1

_PREFIX = "step_"


@dataclass(frozen=True)
class Best:
    """The best validation so far: steps done, mean lDDT-Cα of the moving average (0 to 1)."""

    step: int
    score: float


@dataclass(frozen=True)
class State:
    """Where a run stands, without its tensors.

    Attributes:
        step: optimizer steps done.
        ema_updates: updates of the moving average.
        skipped_steps: steps skipped because their gradient was not finite.
        guard: state of the divergence guard.
        order: what decides which chains a step sees (`datasets.order`).
        validation: hash of the manifest of validation chains; None without.
        base_sha256: of the language model's base weights.
        esmfold_sha256: of ESMFold's published weights, if the run started from them.
        processes: that trained; another number may resume.
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


class AdamMoments(NamedTuple):
    """What Adam remembers of a parameter.

    The running means of its gradients and of their squares have the parameter's shape; `step` is
    the number of steps that it has made.
    """

    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: int


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """All that a run resumes from.

    Attributes:
        state: where it stands.
        weights: tensors by name.
        average: the trained ones' moving average.
        adam: the trained ones' moments; empty before the first step.
    """

    state: State
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    adam: dict[str, AdamMoments]


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return run / CHECKPOINTS / f"{_PREFIX}{step:08d}"


def checkpoint_steps(run: Path) -> list[int]:
    """The steps that have checkpoints, in order."""
    folders = (run / CHECKPOINTS).glob(f"{_PREFIX}*")
    names = (folder.name.removeprefix(_PREFIX) for folder in folders)
    return sorted(int(name) for name in names if name.isdigit())


def find_step(run: Path, name: str) -> int:
    """The step of the checkpoint `name`: last, best (by validation), or a number."""
    steps = checkpoint_steps(run)
    if not steps:
        raise UserError(f"{run / CHECKPOINTS}: no checkpoints; the run has not saved one yet")
    if name == "last":
        return steps[-1]
    if name == "best":
        best = read_state(run, steps[-1]).best
        if best is None:
            raise UserError(f"checkpoint: {run} has not been validated; no checkpoint is the best")
        return best.step
    if name.isdigit() and int(name) in steps:
        return int(name)
    raise UserError(f"checkpoint: {name} is not last, best or one of {', '.join(map(str, steps))}")


def write_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint from the CPU; its folder gets its name once all is on the disk."""
    target = checkpoint_folder(run, checkpoint.state.step)
    temporary = target.with_name(f".{target.name}.tmp")
    make_folder(target.parent)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        files = _files(checkpoint)
        for name, tensors in files.items():
            save_file(tensors, temporary / name)
        hashes = {name: _sha256(temporary / name) for name in files}
        _write_state(temporary, checkpoint.state, hashes)
        for path in (*temporary.iterdir(), temporary):
            sync_folder(path)  # or file
        _remove(target)
        temporary.rename(target)
        sync_folder(target.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{target}: cannot be written ({error})") from error


def mark_validated(run: Path, state: State) -> None:
    """Replaces the state in the checkpoint of its step, after the validation of that step."""
    folder = checkpoint_folder(run, state.step)
    _, hashes = _read_state(folder)
    _write_state(folder, state, hashes)


def read_state(run: Path, step: int) -> State:
    """Where a run stood at a step, without its tensors."""
    return _read_state(checkpoint_folder(run, step))[0]


def read_checkpoint(run: Path, step: int) -> Checkpoint:
    """Reads a checkpoint and checks that its files are those that were written."""
    folder = checkpoint_folder(run, step)
    state, hashes = _read_state(folder)
    weights, average, adam = (_read(folder / n, hashes) for n in (WEIGHTS, AVERAGE, ADAM))
    return Checkpoint(state, weights, average, _moments(adam, folder / ADAM))


def read_weights(run: Path, step: int, *, raw: bool) -> dict[str, Tensor]:
    """The tensors of a model: the moving average of what was trained, or the weights themselves."""
    folder = checkpoint_folder(run, step)
    _, hashes = _read_state(folder)
    weights = _read(folder / WEIGHTS, hashes)
    return weights if raw else weights | _read(folder / AVERAGE, hashes)


def forget_newer(run: Path, step: int) -> None:
    """Deletes checkpoints newer than the one being resumed (0: the beginning): they are damaged.

    Otherwise they would count among the newest, in place of whole ones.
    """
    for newer in checkpoint_steps(run):
        if newer > step:
            _remove(checkpoint_folder(run, newer))


def prune_checkpoints(run: Path, keep_last: int, best: Best | None) -> None:
    """Deletes all but the newest `keep_last` checkpoints and the best, and half-written ones."""
    steps = checkpoint_steps(run)
    kept = {*steps[-keep_last:], best.step if best else -1}
    for step in steps:
        if step not in kept:
            _remove(checkpoint_folder(run, step))
    for left in (run / CHECKPOINTS).glob(f".{_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)


def _files(checkpoint: Checkpoint) -> dict[str, dict[str, Tensor]]:
    adam = {
        f"{name}/{part}": torch.as_tensor(value)
        for name, moments in checkpoint.adam.items()
        for part, value in moments._asdict().items()
    }
    files = {WEIGHTS: checkpoint.weights, AVERAGE: checkpoint.average, ADAM: adam}
    return {file: {n: t.contiguous() for n, t in ts.items()} for file, ts in files.items()}


def _moments(tensors: dict[str, Tensor], path: Path) -> dict[str, AdamMoments]:
    try:
        return {
            name: AdamMoments(
                tensors[f"{name}/exp_avg"],
                tensors[f"{name}/exp_avg_sq"],
                step=int(tensors[f"{name}/step"]),
            )
            for name in dict.fromkeys(key.rpartition("/")[0] for key in tensors)
        }
    except KeyError as error:
        raise UserError(f"{path}: tensor {error} is missing") from error


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


def _read(path: Path, hashes: dict[str, str]) -> dict[str, Tensor]:
    try:
        if _sha256(path) != hashes.get(path.name):
            raise UserError(f"{path}: damaged (its SHA-256 is not the one in {STATE})")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _remove(folder: Path) -> None:
    """Deletes a folder, renamed first: a folder with a checkpoint's name is always whole."""
    if folder.exists():
        gone = folder.with_name(f".{folder.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
