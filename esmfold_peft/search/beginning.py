"""What a search checks before it begins or goes on: settings, chains, and its own folder."""

from dataclasses import fields, replace
from pathlib import Path

from esmfold_peft.config import SearchConfig
from esmfold_peft.config.parsing import config_text, read_config, with_absolute_weights
from esmfold_peft.config.unused import refuse_unused, refuse_unused_of_search
from esmfold_peft.datasets.datamodule import ChainDataModule
from esmfold_peft.disk.files import LOCK, is_half_written, write_atomically
from esmfold_peft.errors import UserError
from esmfold_peft.search.grid import Arm, arms_of, rules_of, shared_config
from esmfold_peft.search.inputs import INPUTS, require_same_inputs
from esmfold_peft.search.ladder import Trial
from esmfold_peft.training.beginning import changed_settings
from esmfold_peft.training.engines.trainer import deepspeed_settings
from esmfold_peft.training.leak_guard import LEAK_CHECK, LeakCheck, check_leaks, refuse_leaks
from esmfold_peft.training.plan import chains_of_device

SETTINGS = "search.yaml"

_MAY_CHANGE = {*(("adapter", n) for n in ("kind", "rank", "alpha")), ("ladder", "beat_frozen")}
"""What the grid says, and what judges trials anew but trains none otherwise."""

_ANY = Arm("none", None, 0)
"""Stands for all trials where what is common to them is compared."""


def absolute(config: SearchConfig) -> SearchConfig:
    """The same files, named so that a trial finds them from any folder of any machine."""
    data, engine = config.data, config.engine
    config = replace(
        config,
        output=config.output.resolve(),
        data=replace(
            data,
            train=data.train.resolve(),
            validation=data.validation and data.validation.resolve(),
            mix={str(Path(path).resolve()): share for path, share in data.mix.items()},
        ),
        engine=replace(engine, deepspeed=engine.deepspeed and engine.deepspeed.resolve()),
        start_from=config.start_from and config.start_from.resolve(),
    )
    return with_absolute_weights(config)


def check_search(config: SearchConfig) -> LeakCheck:
    """Refuses, before anything is begun, what would stop every trial.

    Returns:
        What was found of leaks, so that the trials need not look for them again.

    Raises:
        UserError: the settings of a trial are wrong or do not fit each other, a store is missing or
            broken, or training chains leak validation chains.
    """
    begun = (config.output / SETTINGS).is_file()
    if not begun:
        refuse_unused_of_search(config)
    _check_engine(config)
    trials = [
        shared_config(config, arm, Trial(multiple, config.engine.steps))
        for arm in arms_of(config)
        for multiple in rules_of(config, arm).rungs[0]
    ]
    if not begun:
        refuse_unused(*trials)
    data = ChainDataModule(trials[0])
    assert data.validation is not None
    check = check_leaks(data.train, data.validation, config.output / LEAK_CHECK)
    refuse_leaks(check, data.train, data.validation, config.allow_leaks)
    return check


def _check_engine(config: SearchConfig) -> None:
    """What each trial would check of devices, batch and DeepSpeed."""
    executor, engine = config.executor, config.engine
    devices = config.devices
    if executor.kind == "ray" and executor.gpus and executor.gpus < devices > 1:
        raise UserError(
            f"executor.gpus: {executor.gpus:g} for each trial, which has engine.devices {devices}"
        )
    chains_of_device(replace(engine, devices=devices, nodes=1))
    if engine.deepspeed is not None:
        deepspeed_settings(engine)


def begin_folder(config: SearchConfig, inputs: dict[str, str | None]) -> None:
    """Writes search.yaml, or compares it where the search is gone on with.

    The grid and the seeds may grow and shrink, `ladder.beat_frozen` may change, and whatever `train
    --resume auto` lets change may change, but for the steps and the guard. Files may move, if their
    content is the same.

    Args:
        config: of the search.
        inputs: what it reads (`inputs_of`).

    Raises:
        UserError: names every setting that differs, or the folder holds something else.
    """
    path = config.output / SETTINGS
    if path.is_file():
        changes = _changes(read_config(path, SearchConfig), config)
        if changes:
            raise UserError(
                f"output: {config.output} was begun with other settings ({'; '.join(changes)});"
                " give it the same, or begin another search"
            )
    elif (found := _foreign(config.output)) is not None:
        raise UserError(f"output: {found} is there, and {config.output} is no search")
    require_same_inputs(config.output, inputs)
    write_atomically(path, config_text(config))


def _changes(before: SearchConfig, now: SearchConfig) -> list[str]:
    trial = Trial(1.0, now.engine.steps)
    found = changed_settings(
        shared_config(before, _ANY, trial), shared_config(replace(now, init={}), _ANY, trial)
    )
    pairs = {
        f"{part}.{f.name}": (getattr(old, f.name), getattr(new, f.name))
        for part, old, new in (
            ("adapter", before.adapter, now.adapter),
            ("ladder", before.ladder, now.ladder),
            ("guard", before.guard, now.guard),
        )
        for f in fields(new)
        if (part, f.name) not in _MAY_CHANGE
    }
    pairs["engine.steps"] = before.engine.steps, now.engine.steps
    for kind in before.grid.keys() & now.grid.keys():
        pairs[f"init.{kind}"] = before.init.get(kind), now.init.get(kind)
    return found + [f"{name} is {b}, was {a}" for name, (a, b) in pairs.items() if a != b]


def _foreign(output: Path) -> Path | None:
    """A file that no search has made; None where there is none."""
    own = (SETTINGS, INPUTS, LOCK)
    return next(
        (p for p in sorted(output.iterdir()) if p.name not in own and not is_half_written(p)), None
    )
