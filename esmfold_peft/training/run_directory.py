"""The folder of a training run: everything that rebuilds its model.

config.yaml         every setting, written out
provenance.json     versions, commit, seed, hashes of base weights and data
metrics.csv         losses and validation lDDT-Cα
leaks.csv           training chains that leak validation chains, where such were allowed
model.safetensors   the trained tensors (adapter, trunk, head) and what was drawn at random
adapter/            the adapter alone, where there is one

The frozen language model is named by its hash, and so are ESMFold's published weights.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from esmfold_peft.adapters.io import save_adapter
from esmfold_peft.config import Kernels, TrainConfig
from esmfold_peft.config_io import config_text, read_config, with_absolute_weights
from esmfold_peft.csv_text import csv_text
from esmfold_peft.datasets.leaks import Leak
from esmfold_peft.datasets.position import manifest_hash
from esmfold_peft.errors import UserError
from esmfold_peft.model.build import build_model
from esmfold_peft.model.esmfold_weights import folding_hash
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.protein.files import make_folder, write_atomically
from esmfold_peft.training.optim import parameter_groups

CONFIG = "config.yaml"
PROVENANCE = "provenance.json"
WEIGHTS = "model.safetensors"
ADAPTER = "adapter"
LEAKS = "leaks.csv"

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
    # Who trains from this file allows leaks anew, or not.
    kept = replace(with_absolute_weights(config), allow_leaks=False)
    write_atomically(config.run / CONFIG, config_text(kept))
    provenance = _provenance(config, model, base_hash)
    write_atomically(config.run / PROVENANCE, json.dumps(provenance, indent=2) + "\n")
    if leaks:
        write_atomically(config.run / LEAKS, csv_text(Leak, leaks))
    save_model(config.run, model, base_hash)


def refuse_existing_run(config: TrainConfig) -> None:
    """Checks that training would not write over another run.

    Raises:
        UserError: the folder exists and is not empty.
    """
    if config.run.exists() and (not config.run.is_dir() or any(config.run.iterdir())):
        raise UserError(f"run: {config.run} exists already; choose another folder")


def trained_tensors(model: FoldingModel) -> dict[str, torch.Tensor]:
    """The tensors by name that the run's start does not give back, on the CPU.

    They are the trainable ones, and all that was drawn at random outside the language model, also
    where it is frozen, because another version of PyTorch may draw other numbers.
    """
    return {name: tensor.detach().cpu().contiguous() for name, tensor in _kept(model).items()}


def kept_parameters(model: FoldingModel) -> list[torch.nn.Parameter]:
    """The parameters among `trained_tensors`."""
    return [p for p in _kept(model).values() if isinstance(p, torch.nn.Parameter)]


def _kept(model: FoldingModel) -> dict[str, torch.Tensor]:
    kept: dict[str, torch.Tensor] = {
        name: p
        for name, p in model.named_parameters()
        if p.requires_grad or not (model.published or name.startswith("language_model."))
    }
    adapter = model.language_model.adapter
    if adapter is None:
        return kept
    state = adapter.state_dict(keep_vars=True)
    return kept | {f"language_model.adapter.{name}": tensor for name, tensor in state.items()}


def save_model(run: Path, model: FoldingModel, base_hash: str) -> None:
    """Writes the trained tensors of a model, and its adapter apart.

    Args:
        run: folder of the run.
        model: with whole (not sharded) parameters.
        base_hash: SHA-256 of the language model's base weights.
    """
    data = save(trained_tensors(model), metadata={"base_sha256": base_hash})
    write_atomically(run / WEIGHTS, data)
    if model.language_model.adapter is not None:
        save_adapter(model.language_model.adapter, run / ADAPTER, base_hash)


def load_model(
    run: Path, *, chunk: int | None = None, kernels: Kernels = "none"
) -> tuple[FoldingModel, TrainConfig]:
    """Rebuilds the model of a run, in evaluation mode on the CPU.

    Args:
        run: folder of the run.
        chunk: rows of the pair track at a time, whatever the training had; None chooses.
        kernels: those of the Evoformer, whatever the training had.

    Returns:
        The model with its trained tensors, and the run's settings.

    Raises:
        UserError: the folder is not a run or has no model yet, the base weights are not those of
            the training, or tensors are missing or do not fit.
    """
    if not (run / CONFIG).is_file():
        raise UserError(f"{run}: not the folder of a training run (it has no {CONFIG})")
    path = run / WEIGHTS
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint (the run has not saved a model)")
    config = read_config(run / CONFIG, TrainConfig)
    # How it was trained fast says nothing of this machine; what it computes is the same.
    config = replace(
        config,
        model=replace(config.model, chunk=chunk, kernels=kernels),
        engine=replace(config.engine, compile=False),
    )
    model, base_hash = build_model(config)
    _require_hash(run, "language_model_sha256", base_hash, "the language model's weights")
    if model.published:
        _require_hash(run, "esmfold_sha256", folding_hash(model), "ESMFold's weights")
    _fill(model, path)
    return model.eval(), config


def _fill(model: FoldingModel, path: Path) -> None:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a checkpoint ({error})") from error
    slots = _kept(model)
    for name in sorted(slots.keys() ^ tensors.keys()):
        problem = "is missing" if name in slots else "is not part of the model"
        raise UserError(f"{path}: tensor {name} {problem}")
    for name, parameter in slots.items():
        if parameter.shape != tensors[name].shape:
            raise UserError(
                f"{path}: tensor {name} has shape {tuple(tensors[name].shape)},"
                f" not {tuple(parameter.shape)}"
            )
        with torch.no_grad():
            parameter.copy_(tensors[name])


def _require_hash(run: Path, key: str, found: str, what: str) -> None:
    """Compares the hash of base weights with that of the training."""
    path = run / PROVENANCE
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    expected = content.get(key) if isinstance(content, dict) else None
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
        "command": sys.argv,
        "python": sys.version.split()[0],
        "packages": {name: version(name) for name in _PACKAGES},
        "git_commit": _git_commit(),
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
