"""Settings that have no effect, because another one switches off the part that they belong to.

A user who changes such a setting expects an effect, so a command that starts something new refuses
it. Settings read back from a run or a search are not checked: existing runs can still be resumed,
evaluated and used to predict.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import fields, replace
from typing import Any

from esmfold_peft.config.adapter import WITHOUT_ALPHA, WITHOUT_UPDATE, unused_settings
from esmfold_peft.config.checks import check_unchanged, default_of
from esmfold_peft.config.model import ModelConfig
from esmfold_peft.config.search import SearchConfig
from esmfold_peft.config.training import TrainConfig
from esmfold_peft.errors import UserError

_Unused = tuple[Any, str, Collection[str], str]
"""Settings, the prefix of their names, the names of the unused ones, and what switches them off."""


def refuse_unused(*configs: TrainConfig) -> None:
    """Refuses settings of a training that were changed and have no effect.

    Args:
        configs: one training, or several that share their settings; a setting that has an effect in
            one of them is accepted.

    Raises:
        UserError: names the setting, and the one that switches it off.
    """
    first, *others = map(_faults, configs)
    for setting, fault in first.items():
        if all(setting in faults for faults in others):
            raise fault


def without_unused(config: TrainConfig) -> TrainConfig:
    """The training with every setting that has no effect at its default.

    A search has one set of settings for all kinds of adapters, and some of them have no use for
    part of it.
    """
    for part in _PARTS:
        for settings, prefix, names, _ in part(config):
            defaults = {f.name: default_of(f) for f in fields(settings) if f.name in names}
            config = _replaced(config, prefix.removesuffix(".").split("."), defaults)
    if config.engine.precision == "float32" or config.model.kernels == "openfold":
        # Both of its values are right there: the pair track is float32 in any case.
        config = _replaced(config, ["model"], {"pair_track": ModelConfig.pair_track})
    return config


def _replaced(config: Any, path: list[str], values: dict[str, Any]) -> Any:
    if not path:
        return replace(config, **values)
    first, *rest = path
    return replace(config, **{first: _replaced(getattr(config, first), rest, values)})


def refuse_unused_of_search(config: SearchConfig) -> None:
    """Refuses settings of a search that were changed and reach no trial; see `refuse_unused`.

    Raises:
        UserError: names the setting, and what switches it off.
    """
    kinds, executor = config.grid.keys(), config.executor
    _refuse([(config.adapter, "adapter.", ("kind", "rank", "alpha"), "a grid, which has its own")])
    unused = frozenset.intersection(*map(unused_settings, kinds))
    _refuse([(config.adapter, "adapter.", unused, f"the kinds {', '.join(kinds)}")])
    for kind in config.init:
        if "init" in unused_settings(kind):
            raise UserError(f"init.{kind}: has no effect, {kind} starts no factors; leave it out")
    if all(kind in WITHOUT_ALPHA for kind in kinds):
        names = ("multiples", "factor", "floor", "halve_at", "beat_frozen")
        _refuse([(config.ladder, "ladder.", names, f"the kinds {', '.join(kinds)}")])
    if len(config.ladder.multiples) == 1:
        _refuse([(config.ladder, "ladder.", ("halve_at",), "one of ladder.multiples")])
    if "none" not in kinds:
        _refuse([(config.ladder, "ladder.", ("beat_frozen",), "a grid without none")])
    names = {"cpus": ("ray", "slurm"), "gpus": ("ray",), "address": ("ray",), "slurm": ("slurm",)}
    others = [name for name, kinds in names.items() if executor.kind not in kinds]
    _refuse([(executor, "executor.", others, f"executor.kind {executor.kind}")])


def _faults(config: TrainConfig) -> dict[str, UserError]:
    """What is wrong with each setting that was changed and has no effect."""
    found = {}
    for part in _PARTS:
        for settings, prefix, names, switch in part(config):
            for name in (f.name for f in fields(settings) if f.name in names):
                try:
                    _refuse([(settings, prefix, (name,), switch)])
                except UserError as error:
                    found[prefix + name] = error
    return found


def _refuse(unused: Iterable[_Unused]) -> None:
    for config, prefix, names, switch in unused:
        why = f"has no effect with {switch}; leave it at {{default}}"
        check_unchanged(config, prefix, names, why)


def _of_model(config: TrainConfig) -> Iterator[_Unused]:
    model, kind = config.model, config.adapter.kind
    for section in model.sections:
        if section is not model.section:
            names = [f.name for f in fields(section)]
            yield section, f"model.{section.name}.", names, f"model.trunk {model.trunk}"
    yield config.adapter, "adapter.", unused_settings(kind), f"adapter.kind {kind}"


def _of_loss(config: TrainConfig) -> Iterator[_Unused]:
    loss, weights = config.loss, config.loss.weights
    if not weights.fape:
        yield loss, "loss.", ("clamp_probability",), "loss.weights.fape 0"
    if not (weights.plddt or weights.resolved or weights.pae):
        yield loss, "loss.", ("resolution",), "loss.weights.plddt, resolved and pae 0"


def _of_optimizer(config: TrainConfig) -> Iterator[_Unused]:
    optimizer = config.optimizer
    if optimizer.schedule == "constant":
        yield optimizer, "optimizer.", ("decay_steps",), "optimizer.schedule constant"
    if (kind := config.adapter.kind) in ("none", "full"):
        names = ("lr_adapter", "eps_adapter") if kind == "none" else ("eps_adapter",)
        yield optimizer, "optimizer.", names, f"adapter.kind {kind}"
    for part in config.model.freeze:
        yield optimizer, "optimizer.", (f"lr_{part}",), f"model.freeze [{part}]"


def _of_guard(config: TrainConfig) -> Iterator[_Unused]:
    guard = config.guard
    if (kind := config.adapter.kind) in WITHOUT_UPDATE:
        yield guard, "guard.", ("update_limit",), f"adapter.kind {kind}"
    if guard.score_step is None:
        yield guard, "guard.", ("score_floor",), "guard.score_step null"
    if not guard.loss_steps:
        yield guard, "guard.", ("loss_factor",), "guard.loss_steps 0"
    if not guard.loss_steps and not guard.plateau_steps:
        yield guard, "guard.", ("smoothing",), "guard.loss_steps and plateau_steps 0"
    if not guard.plateau_steps:
        yield guard, "guard.", ("plateau_gain", "plateau_score"), "guard.plateau_steps 0"


def _of_validation(config: TrainConfig) -> Iterator[_Unused]:
    if config.data.validation is None:
        switch = "data.validation null"
        yield config.engine, "engine.", ("validation_tokens", "validate_raw"), switch
        yield config.guard, "guard.", ("score_floor", "score_step"), switch


_PARTS = (_of_model, _of_loss, _of_optimizer, _of_guard, _of_validation)
