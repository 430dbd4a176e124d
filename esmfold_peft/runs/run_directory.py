"""The folder of a training run: everything that rebuilds its model.

config.yaml         every setting, written out
provenance.json     versions, commit, seed, hashes of base weights and data; every session
status.json         how the run stands or has ended (`status`)
plan.json           how many chains a device computes at a time, if a test found it (`plan`)
metrics.csv         losses, norms of gradients, validation scores
validation/         the scores of every chain, one table for each validation
leaks.csv           training chains that leak validation chains, if such were allowed
checkpoints/        what the run resumes from (`checkpoint`)
model.safetensors   the model at the newest checkpoint: the moving average of what was trained
                    (adapter, trunk, head), and what was drawn at random
adapter/            the adapter of that model alone, if it has one
nonfinite/          steps that were skipped, for `train --replay`

The frozen language model is named by its hash, and so are ESMFold's published weights. config.yaml
has their paths; a relative path begins at the run's folder, so that both can be moved together.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from esmfold_peft.adapters.io import save_adapter
from esmfold_peft.config import TrainConfig
from esmfold_peft.config.parsing import config_text, read_config, with_absolute_weights
from esmfold_peft.console import report
from esmfold_peft.datasets.leaks import Leak
from esmfold_peft.datasets.manifest import manifest_hash
from esmfold_peft.disk.csv_text import csv_text
from esmfold_peft.disk.files import is_half_written, make_folder, read_json, write_atomically
from esmfold_peft.disk.locks import LOCK
from esmfold_peft.errors import BusyError, UserError
from esmfold_peft.model.folding import FoldingModel, parameter_groups
from esmfold_peft.runs.versions import installed_versions
from esmfold_peft.weights.esmfold_weights import folding_hash

CONFIG = "config.yaml"
PROVENANCE = "provenance.json"
WEIGHTS = "model.safetensors"
ADAPTER = "adapter"
LEAKS = "leaks.csv"

_ADAPTER_PREFIX = "language_model.adapter."

_PACKAGES = (
    "esmfold-peft",
    "torch",
    "numpy",  # its generators decide the order of the chains
    "fair-esm",
    "openfold3",
    "pytorch-lightning",
    "deepspeed",
)


def create_run(
    config: TrainConfig, model: FoldingModel, base_hash: str, leaks: Sequence[Leak] = ()
) -> None:
    """Makes the folder of a new run, with the untrained model in it.

    `base_hash` is the SHA-256 of the language model's base weights; `leaks` were allowed.
    """
    make_folder(config.run)
    write_config(config)
    _write_provenance(config.run, _provenance(config, model, base_hash))
    if leaks:
        write_atomically(config.run / LEAKS, csv_text(Leak, leaks))
    export_model(config.run, model, kept_tensors(model), base_hash)


def restore_provenance(config: TrainConfig, model: FoldingModel, base_hash: str) -> None:
    """Replaces a provenance.json that cannot be read, without the earlier sessions.

    `model` and `base_hash` are those of the checkpoint that the run resumes from.
    """
    path = config.run / PROVENANCE
    try:
        content = read_json(path)
        if not isinstance(content.get("language_model_sha256"), str):
            raise UserError(f"{path}: language_model_sha256 is missing")
        if not isinstance(content.get("sessions", []), list):
            raise UserError(f"{path}: sessions are not a list")
    except UserError as error:
        report(f"{error}; writing a new one, without the earlier sessions")
        _write_provenance(config.run, _provenance(config, model, base_hash))


def begin_session(config: TrainConfig, step: int, processes: int) -> None:
    """Records that processes begin to train after `step`, and with which settings."""
    content = read_json(config.run / PROVENANCE)
    session = {
        "step": step,
        "processes": processes,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": sys.version.split()[0],
        "packages": installed_versions(_PACKAGES),
        "git_commit": _git_commit(),
    }
    content["sessions"] = [*content.get("sessions", []), session]
    _write_provenance(config.run, content)
    write_config(config)


def _write_provenance(run: Path, content: dict[str, Any]) -> None:
    write_atomically(run / PROVENANCE, json.dumps(content, indent=2) + "\n")


def write_config(config: TrainConfig) -> None:
    """Writes config.yaml, from which the run's model is rebuilt."""
    # A training that starts from this file must itself allow leaks, and say whether to resume.
    kept = replace(with_absolute_weights(config), allow_leaks=False, resume="never")
    write_atomically(config.run / CONFIG, config_text(kept))


def refuse_existing_run(config: TrainConfig) -> None:
    """Checks that training would not overwrite another run.

    Raises BusyError if the command resumes runs, and another process has just started this one.
    """
    run = config.run
    if config.resume == "auto" and (run / CONFIG).is_file():
        raise BusyError(f"run: another process has just started {run}; try again")
    if run.exists() and (not run.is_dir() or any(not _is_leftover(p) for p in run.iterdir())):
        raise UserError(f"run: {run} exists already; choose another folder")


def remove_leftovers(run: Path) -> None:
    """Removes half-written files that a kill has left; the folder must be locked."""
    for path in (*run.iterdir(), *(run / ADAPTER).glob(".*")):
        if _is_leftover(path) and path.name != LOCK:
            path.unlink(missing_ok=True)


def _is_leftover(path: Path) -> bool:
    return path.name == LOCK or is_half_written(path)


def kept_tensors(model: FoldingModel) -> dict[str, Tensor]:
    """The tensors by name that cannot be rebuilt from the run's settings.

    They are the trainable ones and all others that were drawn at random outside the language model:
    another version of PyTorch may draw other numbers.
    """
    kept: dict[str, Tensor] = {
        name: p
        for name, p in model.named_parameters()
        if p.requires_grad or not (model.published or name.startswith("language_model."))
    }
    adapter = model.language_model.adapter
    if adapter is None:
        return kept
    state = adapter.state_dict(keep_vars=True)
    return kept | {f"{_ADAPTER_PREFIX}{name}": tensor for name, tensor in state.items()}


def export_model(
    run: Path, model: FoldingModel, tensors: dict[str, Tensor], base_hash: str
) -> None:
    """Writes model.safetensors, and the adapter into a folder of its own.

    `tensors` are the `kept_tensors` of the model by name, whole and on the CPU.
    """
    content = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_atomically(run / WEIGHTS, save(content, metadata={"base_sha256": base_hash}))
    adapter = model.language_model.adapter
    if adapter is not None:
        own = {
            name.removeprefix(_ADAPTER_PREFIX): tensor
            for name, tensor in content.items()
            if name.startswith(_ADAPTER_PREFIX)
        }
        state = {name: own[name] for name in adapter.state_dict()}
        save_adapter(adapter, run / ADAPTER, base_hash, state)


def run_config(run: Path) -> TrainConfig:
    """The settings of a run; a UserError if the folder is not a run."""
    require_run(run)
    return with_absolute_weights(read_config(run / CONFIG, TrainConfig), run)


def require_run(run: Path) -> None:
    """Refuses a folder that no training has made."""
    if not (run / CONFIG).is_file():
        raise UserError(f"{run}: not the folder of a training run (it has no {CONFIG})")


def require_base(run: Path, model: FoldingModel, base_hash: str) -> None:
    """Refuses a model whose published weights are not those that a run began with."""
    bases = {"language_model_sha256": (base_hash, "the language model's weights")}
    if model.published:
        bases["esmfold_sha256"] = (folding_hash(model), "ESMFold's weights")
    path = run / PROVENANCE
    content = read_json(path)
    for key, (found, what) in bases.items():
        expected = content.get(key)
        if not isinstance(expected, str):
            raise UserError(f"{path}: {key} is missing")
        if found != expected:
            raise UserError(
                f"{run}: {what} are not those of the training"
                f" (SHA-256 {found[:12]}, trained with {expected[:12]})"
            )


def fill_model(model: FoldingModel, tensors: dict[str, Tensor], place: Path) -> None:
    """Copies stored tensors, exactly the `kept_tensors` of the model by name, into it.

    Its parameters must be whole. `place` is where the tensors come from, for messages.
    """
    slots = kept_tensors(model)
    for name in sorted(slots.keys() ^ tensors.keys()):
        problem = "is missing" if name in slots else "is not part of the model"
        raise UserError(f"{place}: tensor {name} {problem}")
    for name, parameter in slots.items():
        if parameter.shape != tensors[name].shape:
            raise UserError(
                f"{place}: tensor {name} has shape {tuple(tensors[name].shape)},"
                f" not {tuple(parameter.shape)}"
            )
    with torch.no_grad():
        for name, parameter in slots.items():
            parameter.copy_(tensors[name])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of a run; a UserError if it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint (the run has not saved a model)")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a checkpoint ({error})") from error


def _provenance(config: TrainConfig, model: FoldingModel, base_hash: str) -> dict[str, Any]:
    data = {"train": config.data.train, "validation": config.data.validation}
    data |= {f"mix.{path}": Path(path) for path in config.data.mix}
    return {
        "seed": config.seed,
        "parameters": {
            name: sum(p.numel() for p in group) for name, group in parameter_groups(model).items()
        },
        "language_model_sha256": base_hash,
        "esmfold_sha256": folding_hash(model) if model.published else None,
        "manifest_sha256": {
            name: manifest_hash(path) for name, path in data.items() if path is not None
        },
    }


def _git_commit() -> str | None:
    """Commit of the source tree that runs; None for an installed package."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def adapter_folder(folder: Path) -> Path:
    """The folder of an adapter, given that or the folder of its run."""
    return folder / ADAPTER if (folder / CONFIG).is_file() else folder
