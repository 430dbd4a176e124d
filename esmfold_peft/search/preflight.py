"""What a search checks before it starts or resumes: settings, chains, files, its own folder."""

import hashlib
import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from esmfold_peft.config import SearchConfig
from esmfold_peft.config.parsing import config_text, read_config, with_absolute_weights
from esmfold_peft.config.unused import refuse_unused, refuse_unused_of_search
from esmfold_peft.datasets.datamodule import ChainDataModule
from esmfold_peft.datasets.manifest import manifest_hash
from esmfold_peft.datasets.order import order_of
from esmfold_peft.disk.files import is_half_written, read_json, write_atomically
from esmfold_peft.disk.locks import LOCK
from esmfold_peft.errors import UserError
from esmfold_peft.runs.run_directory import WEIGHTS, run_config
from esmfold_peft.search.grid import Arm, arms_of, rules_of, shared_config
from esmfold_peft.search.ladder import Trial
from esmfold_peft.training.beginning import changed_settings
from esmfold_peft.training.engines.launch import chains_of_device
from esmfold_peft.training.engines.trainer import deepspeed_settings
from esmfold_peft.training.leak_guard import LEAK_CHECK, LeakCheck, check_leaks, refuse_leaks

SETTINGS = "search.yaml"
INPUTS = "inputs.json"

_MAY_CHANGE = {"adapter.kind", "adapter.rank", "adapter.alpha", "ladder.beat_frozen"}
"""The grid sets the first three; the last judges trials again but changes no training."""

_ANY = Arm("none", None, 0)
"""Stands for all arms where settings that they share are compared."""


def absolute(config: SearchConfig) -> SearchConfig:
    """The settings with absolute paths, which a trial finds from any folder of any machine."""
    mix = {str(Path(path).resolve()): share for path, share in config.data.mix.items()}
    config = _resolved(replace(config, data=replace(config.data, mix=mix)))
    return with_absolute_weights(config)


def _resolved(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _resolved(getattr(value, f.name)) for f in fields(value)})
    return value.resolve() if isinstance(value, Path) else value


def check_search(config: SearchConfig) -> LeakCheck:
    """Refuses what would stop every trial, and looks for leaks once for all of them.

    Raises:
        UserError: a trial's settings are wrong or do not fit each other, a store is missing or
            broken, or training chains leak validation chains.
    """
    resumed = (config.output / SETTINGS).is_file()
    if not resumed:
        refuse_unused_of_search(config)
    _check_engine(config)
    trials = [
        shared_config(config, arm, Trial(multiple, config.engine.steps))
        for arm in arms_of(config)
        for multiple in rules_of(config, arm).rungs[0]
    ]
    if not resumed:
        refuse_unused(*trials)
    data = ChainDataModule(trials[0])
    assert data.validation is not None
    check = check_leaks(data.train, data.validation, config.output / LEAK_CHECK)
    refuse_leaks(check, data.train, data.validation, config.allow_leaks)
    return check


def _check_engine(config: SearchConfig) -> None:
    """Checks devices, batch and DeepSpeed as each trial would."""
    gpus, devices = config.executor.gpus, config.devices
    if config.executor.kind == "ray" and gpus and gpus < devices > 1:
        raise UserError(
            f"executor.gpus: {gpus:g} for each trial, which has engine.devices {devices}; give each"
            f" trial {devices}"
        )
    chains_of_device(replace(config.engine, devices=devices, nodes=1))
    if config.engine.deepspeed is not None:
        deepspeed_settings(config.engine)


def begin_folder(config: SearchConfig, inputs: dict[str, str | None]) -> None:
    """Writes search.yaml and inputs.json, or compares them with those of the search to resume.

    The grid, the seeds and `ladder.beat_frozen` may change, and what `train --resume auto` lets
    change, except steps and guard. Files may move if their content is the same.

    Raises:
        UserError: names every setting or file that differs; or the folder holds something else.
    """
    output, path = config.output, config.output / SETTINGS
    if path.is_file():
        if changes := _changes(read_config(path, SearchConfig), config):
            raise UserError(
                f"output: {output} was started with other settings ({'; '.join(changes)}); use"
                " those settings, or another folder"
            )
    else:
        for found in sorted(output.iterdir()):
            if found.name not in (SETTINGS, INPUTS, LOCK) and not is_half_written(found):
                raise UserError(
                    f"output: {output} is no search and not empty ({found.name}); choose another"
                    " folder"
                )
    if not (output / INPUTS).is_file():
        write_atomically(output / INPUTS, json.dumps(inputs, indent=2) + "\n")
    before = read_json(output / INPUTS)
    changed = [f"{n} is {v}, was {before.get(n)}" for n, v in inputs.items() if v != before.get(n)]
    if changed:
        raise UserError(
            f"output: {output} was started with other files ({'; '.join(changed)}), and its trials"
            " could not be compared; use those files, or another folder"
        )
    write_atomically(path, config_text(config))


def _changes(before: SearchConfig, now: SearchConfig) -> list[str]:
    """The settings that may not change and have, each with both values."""
    trial = Trial(1.0, now.engine.steps)
    found = changed_settings(
        shared_config(before, _ANY, trial), shared_config(replace(now, init={}), _ANY, trial)
    )
    pairs = {
        f"{part}.{f.name}": (getattr(getattr(before, part), f.name), getattr(new, f.name))
        for part, new in (("adapter", now.adapter), ("ladder", now.ladder), ("guard", now.guard))
        for f in fields(new)
        if f"{part}.{f.name}" not in _MAY_CHANGE
    }
    pairs["engine.steps"] = before.engine.steps, now.engine.steps
    for kind in before.grid.keys() & now.grid.keys():
        pairs[f"init.{kind}"] = before.init.get(kind), now.init.get(kind)
    return found + [f"{name} is {b}, was {a}" for name, (a, b) in pairs.items() if a != b]


def inputs_of(config: SearchConfig) -> dict[str, str | None]:
    """Hashes of chains, weights and the model that trials start with, by the names of settings.

    `train --resume auto` compares these for a run. A trial that has not started has nothing to
    compare with, but the ladder compares it with other trials.

    Raises:
        UserError: a file is missing.
    """
    order, start, model = order_of(config.data, 0), config.start_from, config.model
    assert config.data.validation is not None
    if start is not None:
        run_config(start)  # it is a run, or this raises
    weights = {"model.language_model.weights": model.language_model.weights}
    if model.section.published:
        weights[f"model.{model.section.name}.weights"] = model.section.weights
    return {
        "data.train": order["data.train"],
        "data.mix": order["data.mix"],
        "data.validation": f"manifest {manifest_hash(config.data.validation)[:16]}",
        **{setting: _content(setting, value) for setting, value in weights.items()},
        "start_from": start and _content("start_from", str(start / WEIGHTS)),
    }


def _content(setting: str, weights: str) -> str:
    """The hash of a file or of all files of a folder; the name of weights that have no file."""
    if weights in ("pretrained", "random"):
        return weights
    path, digest = Path(weights), hashlib.sha256()
    try:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if not file.is_dir():
                with file.open("rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
    except OSError as error:
        raise UserError(f"{setting}: {error.filename}: {error.strerror}") from error
    return f"sha256 {digest.hexdigest()[:16]}"
