"""Where a training begins: anew, from another run's model, or from its own newest checkpoint."""

from dataclasses import fields, is_dataclass
from typing import Any

from esmfold_peft.config import ModelConfig, TrainConfig
from esmfold_peft.config.unused import without_unused
from esmfold_peft.console import report
from esmfold_peft.datasets.position import manifest_hash, order_of, require_order
from esmfold_peft.errors import UserError
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.runs.checkpoint import (
    Checkpoint,
    State,
    checkpoint_folder,
    checkpoint_steps,
    read_checkpoint,
)
from esmfold_peft.runs.run_directory import (
    CONFIG,
    WEIGHTS,
    fill_model,
    kept_tensors,
    read_tensors,
    require_base,
    run_config,
)
from esmfold_peft.runs.status import read_status
from esmfold_peft.weights.esmfold_weights import folding_hash

_TRUNKS = ModelConfig().sections

_FREE = (
    "run",
    "resume",
    "allow_leaks",
    "checkpoints",
    "guard",
    "log",
    "start_from",  # its model has been copied
    "data.train",  # stores may have moved: their manifests are compared
    "data.validation",
    "data.mix",
    "data.workers",
    "engine.accelerator",
    "engine.devices",
    "engine.nodes",
    "engine.deepspeed",
    "engine.micro_batch",
    "engine.compile",
    "engine.cuda_graphs",
    "engine.steps",
    "engine.validate_every",
    "engine.validation_tokens",
    "engine.validate_raw",
    "model.chunk",
    *(f"model.{trunk.name}.checkpoint" for trunk in _TRUNKS),
    "model.language_model.checkpoint",
    "model.language_model.weights",  # files may have moved: their hashes are compared
    *(f"model.{trunk.name}.weights" for trunk in _TRUNKS if trunk.published),
)
"""Settings that may change when a run is gone on with."""

_SHAPELESS = (
    *(f"adapter.{name}" for name in ("alpha", "scaling", "init", "freeze", "lr_factors")),
    *(f"model.{trunk.name}.dropout" for trunk in _TRUNKS),
    "model.structure.dropout",
    "model.max_recycles",
    "model.kernels",
    "model.pair_track",
)
"""Beginnings of settings of a model that change no tensor's shape."""


def is_begun(config: TrainConfig) -> bool:
    """Whether --resume auto finds a run in the folder."""
    return config.resume == "auto" and (config.run / CONFIG).is_file()


def newest_checkpoint(config: TrainConfig) -> Checkpoint | None:
    """What a run goes on from; None at its beginning.

    A checkpoint that is damaged is passed over, and it is said.

    Raises:
        UserError: the run has made steps, and no checkpoint of it can be read.
    """
    if not is_begun(config):
        return None
    steps = checkpoint_steps(config.run)
    for step in reversed(steps):
        try:
            return read_checkpoint(config.run, step)
        except UserError as error:
            report(f"{error}; an older checkpoint is looked for")
    # Without a checkpoint only the status says whether there were steps: here it must be whole.
    status = None if steps else read_status(config.run)
    if steps or (status is not None and status.step > 0):
        raise UserError(
            f"resume: {config.run} has made steps, and no checkpoint of it can be read; bring one"
            " back, or choose another folder"
        )
    return None


def require_same_run(config: TrainConfig, checkpoint: Checkpoint | None) -> None:
    """Refuses to go on with settings that would make another run of it.

    Args:
        config: of the command.
        checkpoint: what it would go on from.

    Raises:
        UserError: names every setting that differs.
    """
    changes = changed_settings(without_unused(run_config(config.run)), without_unused(config))
    if changes:
        raise UserError(
            f"resume: {config.run} was begun with other settings ({'; '.join(changes)}); give it"
            f" the same, or begin another run with --start_from {config.run}"
        )
    if checkpoint is not None:
        _require_same_data(config, checkpoint.state)


def changed_settings(before: TrainConfig, now: TrainConfig) -> list[str]:
    """The settings that decide a training's result and are not as they were, each with both values.

    Args:
        before: with which a run was begun.
        now: with which it would be gone on with.
    """
    old, new = _flat(before), _flat(now)
    for values in (old, new):  # null is the other one
        values["optimizer.eps_adapter"] = values["optimizer.eps_adapter"] or values["optimizer.eps"]
    differing = [name for name in new if old.get(name) != new[name] and not _is_free(name)]
    return [f"{name} is {new[name]}, was {old.get(name)}" for name in differing]


def first_state(config: TrainConfig, model: FoldingModel, base_hash: str) -> State:
    """Where a run stands at its beginning.

    Args:
        config: the run's settings.
        model: the model at its start.
        base_hash: SHA-256 of the language model's base weights.
    """
    return State(
        step=0,
        ema_updates=0,
        skipped_steps=0,
        guard={},
        order=order_of(config.data, config.seed),
        validation=_validation_hash(config),
        base_sha256=base_hash,
        esmfold_sha256=folding_hash(model) if model.published else None,
        processes=1,
        validated=True,
        score=None,
        best=None,
    )


def load_checkpoint(
    config: TrainConfig, model: FoldingModel, base_hash: str, checkpoint: Checkpoint
) -> None:
    """Fills a model with a checkpoint's weights.

    Raises:
        UserError: the checkpoint belongs to other base weights, or does not fit.
    """
    place = checkpoint_folder(config.run, checkpoint.state.step)
    published = folding_hash(model) if model.published else None
    bases = {
        "the language model's weights": (base_hash, checkpoint.state.base_sha256),
        "ESMFold's weights": (published, checkpoint.state.esmfold_sha256),
    }
    for what, (found, expected) in bases.items():
        if found != expected:
            raise UserError(f"{place}: {what} were others (SHA-256 {expected}, now {found})")
    fill_model(model, checkpoint.weights, place)


def load_start(config: TrainConfig, model: FoldingModel, base_hash: str) -> None:
    """Fills a model with the moving average of the run that it starts from.

    An adapter starts anew where that run had none.

    Args:
        config: of the new run, with `start_from`.
        model: the model of the new run.
        base_hash: SHA-256 of the language model's base weights.

    Raises:
        UserError: the folder is no run, or its model has other base weights or another shape; names
            the settings that make it another.
    """
    run = config.start_from
    assert run is not None
    before = run_config(run)
    tensors = read_tensors(run / WEIGHTS)
    if not any(name.startswith("language_model.") for name in tensors):
        own = kept_tensors(model).items()
        tensors |= {n: t.detach() for n, t in own if n.startswith("language_model.")}
    try:
        require_base(run, model, base_hash)
        fill_model(model, tensors, run / WEIGHTS)
    except UserError as error:
        if changes := [text for text in changed_settings(before, config) if _shapes(text)]:
            raise UserError(
                f"start_from: the model of {run} does not fit this one ({'; '.join(changes)}); give"
                " it these settings"
            ) from error
        raise


def _shapes(setting: str) -> bool:
    """Whether a setting decides which tensors of which shapes a model has."""
    return setting.startswith(("model.", "adapter.")) and not setting.startswith(_SHAPELESS)


def _require_same_data(config: TrainConfig, state: State) -> None:
    require_order(state.order, order_of(config.data, config.seed))
    validation = _validation_hash(config)
    if validation != state.validation:
        raise UserError(
            f"data.validation: {config.data.validation} has not the chains that the run was"
            " validated on so far"
        )


def _validation_hash(config: TrainConfig) -> str | None:
    store = config.data.validation
    return None if store is None else manifest_hash(store)


def _is_free(name: str) -> bool:
    return any(name == free or name.startswith(f"{free}.") for free in _FREE)


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every setting by its whole name."""
    if not is_dataclass(config):
        return {prefix.removesuffix("."): config}
    found: dict[str, Any] = {}
    for field in fields(config):
        found |= _flat(getattr(config, field.name), f"{prefix}{field.name}.")
    return found
