"""What a search checks before it begins or goes on: settings, chains, and its own folder."""

from dataclasses import fields, replace
from pathlib import Path

from esmfold_peft.config import SearchConfig
from esmfold_peft.config_io import config_text, read_config, with_absolute_weights
from esmfold_peft.datasets.datamodule import ChainDataModule
from esmfold_peft.errors import UserError
from esmfold_peft.protein.files import write_atomically
from esmfold_peft.search.grid import Arm, arms_of, rules_of, trial_config
from esmfold_peft.search.ladder import Trial
from esmfold_peft.training.beginning import changed_settings
from esmfold_peft.training.leak_guard import guard

SETTINGS = "search.yaml"

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


def check_search(config: SearchConfig) -> None:
    """Refuses, before anything is begun, what would stop every trial.

    Raises:
        UserError: the settings of a trial are wrong, a store is missing or broken, or training
            chains leak validation chains.
    """
    first = None
    for arm in arms_of(config):
        for multiple in rules_of(config, arm).rungs[0]:
            settings = trial_config(config, arm, Trial(multiple, config.engine.steps))
            first = first or settings
    assert first is not None
    data = ChainDataModule(first)
    assert data.validation is not None
    guard(data.train, data.validation, allow=config.allow_leaks)


def begin_folder(config: SearchConfig) -> None:
    """Writes search.yaml, or compares it where the search is gone on with.

    The grid and the seeds may grow and shrink, and whatever `train --resume auto` lets change may
    change, but for the steps.

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
    write_atomically(path, config_text(config))


def _changes(before: SearchConfig, now: SearchConfig) -> list[str]:
    trial = Trial(1.0, now.engine.steps)
    found = changed_settings(
        trial_config(before, _ANY, trial), trial_config(replace(now, init={}), _ANY, trial)
    )
    pairs = {
        f"ladder.{f.name}": (getattr(before.ladder, f.name), getattr(now.ladder, f.name))
        for f in fields(now.ladder)
    }
    pairs["engine.steps"] = before.engine.steps, now.engine.steps
    for kind in before.grid.keys() & now.grid.keys():
        pairs[f"init.{kind}"] = before.init.get(kind), now.init.get(kind)
    return found + [f"{name} is {b}, was {a}" for name, (a, b) in pairs.items() if a != b]


def _foreign(output: Path) -> Path | None:
    """A file that no search has made; None where there is none."""
    own = (SETTINGS, ".lock")
    return next((p for p in sorted(output.iterdir()) if p.name not in own), None)
