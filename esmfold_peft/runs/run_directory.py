"""The folder of a training run: everything that rebuilds its model.

config.yaml         every setting, written out
provenance.json     versions, commit, seed, hashes of base weights and data; every session
status.json         how the run stands or has ended (`status`)
plan.json           how many chains a device computes at a time, where a trial has found it (`plan`)
metrics.csv         losses, norms of gradients, validation scores
validation/         the scores of every chain, one table for each validation
leaks.csv           training chains that leak validation chains, where such were allowed
checkpoints/        what the run goes on from (`checkpoint`)
model.safetensors   the model at the newest checkpoint: the moving average of what was trained
                    (adapter, trunk, head), and what was drawn at random
adapter/            the adapter of that model alone, where there is one
nonfinite/          steps that were left out, to be done again by `train --replay`

The frozen language model is named by its hash, and so are ESMFold's published weights.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from esmfold_peft.adapters.io import save_adapter
from esmfold_peft.config import TrainConfig
from esmfold_peft.config.parsing import config_text, read_config, with_absolute_weights
from esmfold_peft.console import report
from esmfold_peft.datasets.leaks import Leak
from esmfold_peft.datasets.position import manifest_hash
from esmfold_peft.disk.csv_text import csv_text
from esmfold_peft.disk.files import (
    LOCK,
    is_half_written,
    make_folder,
    read_json,
    write_atomically,
)
from esmfold_peft.errors import BusyError, UserError
from esmfold_peft.model.folding import FoldingModel, parameter_groups
from esmfold_peft.runs.build import build_model
from esmfold_peft.runs.checkpoint import checkpoint_folder, find_step, read_weights
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

    Args:
        config: the run's settings.
        model: the model at its start.
        base_hash: SHA-256 of the language model's base weights.
        leaks: training chains that leak validation chains and were allowed to.

    Raises:
        UserError: the folder cannot be made.
    """
    make_folder(config.run)
    write_config(config)
    provenance = _provenance(config, model, base_hash)
    write_atomically(config.run / PROVENANCE, json.dumps(provenance, indent=2) + "\n")
    if leaks:
        write_atomically(config.run / LEAKS, csv_text(Leak, leaks))
    export_model(config.run, model, kept_tensors(model), base_hash)


def restore_provenance(config: TrainConfig, model: FoldingModel, base_hash: str) -> None:
    """Writes provenance.json anew, without earlier sessions, where it cannot be read.

    Args:
        config: the run's settings.
        model: the model of its checkpoint.
        base_hash: SHA-256 of the language model's base weights, as the checkpoint names it.
    """
    path = config.run / PROVENANCE
    try:
        content = read_json(path)
        if not isinstance(content.get("language_model_sha256"), str):
            raise UserError(f"{path}: language_model_sha256 is missing")
        if not isinstance(content.get("sessions", []), list):
            raise UserError(f"{path}: sessions are no list")
    except UserError as error:
        report(f"{error}; it is written anew, without the earlier sessions")
        write_atomically(path, json.dumps(_provenance(config, model, base_hash), indent=2) + "\n")


def begin_session(config: TrainConfig, step: int, processes: int) -> None:
    """Writes into a run's folder that processes begin to train, and with which settings.

    Args:
        config: the settings, of which some may have changed since the run was begun.
        step: optimizer steps done before.
        processes: that train together.
    """
    path = config.run / PROVENANCE
    content = read_json(path)
    session = {
        "step": step,
        "processes": processes,
        "command": sys.argv,
        "python": sys.version.split()[0],
        "packages": installed_versions(_PACKAGES),
        "git_commit": _git_commit(),
    }
    content["sessions"] = [*content.get("sessions", []), session]
    write_atomically(path, json.dumps(content, indent=2) + "\n")
    write_config(config)


def write_config(config: TrainConfig) -> None:
    """Writes config.yaml, from which the run's model is rebuilt."""
    # Who trains from this file allows leaks anew, or not, and says whether to go on.
    kept = replace(with_absolute_weights(config), allow_leaks=False, resume="never")
    write_atomically(config.run / CONFIG, config_text(kept))


def refuse_existing_run(config: TrainConfig) -> None:
    """Checks that training would not write over another run.

    Raises:
        BusyError: the run was to be gone on with, and another process has begun it since.
        UserError: the folder exists and is not empty.
    """
    run = config.run
    if config.resume == "auto" and (run / CONFIG).is_file():
        raise BusyError(f"run: {run} was begun by another process a moment ago; try again")
    if run.exists() and (not run.is_dir() or any(not _is_leftover(p) for p in run.iterdir())):
        raise UserError(f"run: {config.run} exists already; choose another folder")


def remove_leftovers(run: Path) -> None:
    """Removes what a kill in the midst of writing has left; the folder must be locked."""
    for path in (*run.iterdir(), *(run / ADAPTER).glob(".*")):
        if _is_leftover(path) and path.name != LOCK:
            path.unlink(missing_ok=True)


def _is_leftover(path: Path) -> bool:
    """Whether a file is a lock, or half of another one (`protein.files`)."""
    return path.name == LOCK or is_half_written(path)


def kept_tensors(model: FoldingModel) -> dict[str, torch.Tensor]:
    """The tensors by name that the run's start does not give back.

    They are the trainable ones, and all that was drawn at random outside the language model, also
    where it is frozen, because another version of PyTorch may draw other numbers.
    """
    kept: dict[str, torch.Tensor] = {
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
    run: Path, model: FoldingModel, tensors: dict[str, torch.Tensor], base_hash: str
) -> None:
    """Writes a model as others use it, and its adapter apart.

    Args:
        run: folder of the run.
        model: what the tensors belong to.
        tensors: `kept_tensors` by name, whole and on the CPU.
        base_hash: SHA-256 of the language model's base weights.
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


def load_model(
    run: Path,
    *,
    checkpoint: str | None = None,
    raw: bool = False,
    chunk: int | None = None,
) -> tuple[FoldingModel, TrainConfig]:
    """Rebuilds the model of a run, in evaluation mode on the CPU.

    Args:
        run: folder of the run.
        checkpoint: last, best or a step; None takes model.safetensors, which is the last one's.
        raw: take the trained weights as they were, not their moving average.
        chunk: rows of the pair track at a time, whatever the training had; None chooses.

    Returns:
        The model with its trained tensors, and the run's settings.

    Raises:
        UserError: the folder is not a run or has no such model yet, the base weights are not those
            of the training, or tensors are missing or do not fit.
    """
    require_run(run)
    tensors, place = _stored_tensors(run, checkpoint, raw)
    config = run_config(run)
    # How it was trained fast says nothing of this machine; what it computes is the same.
    exact = config.model.kernels == "openfold"
    track = "float32" if exact else config.model.pair_track
    config = replace(
        config,
        model=replace(config.model, chunk=chunk, kernels="fused", pair_track=track),
        engine=replace(config.engine, compile=False, cuda_graphs=False),
    )
    model = rebuild_model(run, config, tensors, place)
    return model.eval(), config


def run_config(run: Path) -> TrainConfig:
    """The settings of a run.

    Raises:
        UserError: the folder is not a run, or its settings cannot be read.
    """
    require_run(run)
    return read_config(run / CONFIG, TrainConfig)


def require_run(run: Path) -> None:
    """Refuses a folder that no training has made.

    Raises:
        UserError: it has no settings.
    """
    if not (run / CONFIG).is_file():
        raise UserError(f"{run}: not the folder of a training run (it has no {CONFIG})")


def rebuild_model(
    run: Path, config: TrainConfig, tensors: dict[str, torch.Tensor], place: Path
) -> FoldingModel:
    """Builds the model of a run, with tensors that were kept.

    Args:
        run: folder of the run.
        config: its settings.
        tensors: `kept_tensors` by name.
        place: where they come from.

    Raises:
        UserError: the base weights are not those of the training, or tensors are missing or do not
            fit.
    """
    model, base_hash = build_model(config)
    require_base(run, model, base_hash)
    fill_model(model, tensors, place)
    return model


def require_base(run: Path, model: FoldingModel, base_hash: str) -> None:
    """Refuses a model that does not begin with the published weights that a run began with.

    Raises:
        UserError: they differ, or the run does not say which they were.
    """
    _require_hash(run, "language_model_sha256", base_hash, "the language model's weights")
    if model.published:
        _require_hash(run, "esmfold_sha256", folding_hash(model), "ESMFold's weights")


def fill_model(model: FoldingModel, tensors: dict[str, torch.Tensor], place: Path) -> None:
    """Copies tensors that were kept into a model.

    Args:
        model: with whole parameters.
        tensors: exactly its `kept_tensors` by name.
        place: where they come from, for messages.

    Raises:
        UserError: one is missing, unknown or of another shape.
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


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of a run.

    Raises:
        UserError: it is missing or damaged.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint (the run has not saved a model)")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a checkpoint ({error})") from error


def _stored_tensors(
    run: Path, checkpoint: str | None, raw: bool
) -> tuple[dict[str, torch.Tensor], Path]:
    """Tensors of a model, and where they were found."""
    if checkpoint is None and not raw:
        return read_tensors(run / WEIGHTS), run / WEIGHTS
    step = find_step(run, checkpoint or "last")
    return read_weights(run, step, raw=raw), checkpoint_folder(run, step)


def _require_hash(run: Path, key: str, found: str, what: str) -> None:
    """Compares the hash of base weights with that of the training."""
    path = run / PROVENANCE
    expected = read_json(path).get(key)
    if not isinstance(expected, str):
        raise UserError(f"{path}: {key} is missing")
    if found != expected:
        raise UserError(
            f"{run}: {what} are not those of the training"
            f" (SHA-256 {found[:12]}, trained with {expected[:12]})"
        )


def _provenance(config: TrainConfig, model: FoldingModel, base_hash: str) -> dict:
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
