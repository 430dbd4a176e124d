"""Where a training begins: new, from another run's model, or from its own newest checkpoint."""

from dataclasses import fields, is_dataclass
from typing import Any

from esmfold_peft.config import ModelConfig, TrainConfig
from esmfold_peft.config.unused import without_unused
from esmfold_peft.console import report
from esmfold_peft.datasets.manifest import manifest_hash
from esmfold_peft.datasets.order import order_of, require_order
from esmfold_peft.errors import UserError
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.runs.build import build_model
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

_ENGINE = (
    "accelerator devices nodes deepspeed micro_batch compile cuda_graphs steps"
    " validate_every validation_tokens validate_raw"
)
_FREE = (
    *"run resume allow_leaks checkpoints guard log data.workers model.chunk".split(),
    *(f"engine.{name}" for name in _ENGINE.split()),
    *(f"model.{trunk.name}.recompute" for trunk in _TRUNKS),
    "model.language_model.recompute",
    "start_from",  # its model has been copied
    # Files may have moved: hashes of stores and weights are compared.
    *"data.train data.validation data.mix model.language_model.weights".split(),
    *(f"model.{trunk.name}.weights" for trunk in _TRUNKS if trunk.published),
)
"""Settings that may change when a run is resumed."""

_SHAPELESS = (
    *(f"adapter.{name}" for name in ("alpha", "scaling", "init", "freeze", "lr_factors")),
    *(f"model.{trunk.name}.dropout" for trunk in _TRUNKS),
    "model.structure.dropout",
    "model.max_recycles",
    "model.kernels",
    "model.pair_track",
)
"""Prefixes of model settings that change no tensor's shape."""


def resumes(config: TrainConfig) -> bool:
    """Whether --resume auto finds a run in the folder."""
    return config.resume == "auto" and (config.run / CONFIG).is_file()


def newest_checkpoint(config: TrainConfig) -> Checkpoint | None:
    """What a run resumes from; None at its beginning.

    A damaged checkpoint is reported and skipped.

    Raises:
        UserError: the run has made steps, and no checkpoint of it can be read.
    """
    if not resumes(config):
        return None
    steps = checkpoint_steps(config.run)
    for step in reversed(steps):
        try:
            return read_checkpoint(config.run, step)
        except UserError as error:
            report(f"{error}; trying an older checkpoint")
    # Without a checkpoint only the status says whether there were steps: here it must be whole.
    status = None if steps else read_status(config.run)
    if steps or (status is not None and status.step > 0):
        raise UserError(
            f"resume: {config.run} has made steps, but none of its checkpoints can be read; restore"
            " one, or choose another folder"
        )
    return None


def require_same_run(config: TrainConfig, checkpoint: Checkpoint | None) -> None:
    """Refuses to resume with settings or chains that would change the result.

    Raises:
        UserError: names every setting that differs.
    """
    changes = changed_settings(without_unused(run_config(config.run)), without_unused(config))
    if changes:
        raise UserError(
            f"resume: {config.run} was started with other settings ({'; '.join(changes)});"
            f" give the same, or start another run with --start_from {config.run}"
        )
    if checkpoint is None:
        return
    require_order(checkpoint.state.order, order_of(config.data, config.seed))
    if checkpoint.state.validation != _validation_hash(config):
        raise UserError(
            f"data.validation: {config.data.validation} does not have the chains that the run was"
            " validated on so far; give the store that it was started with"
        )


def changed_settings(before: TrainConfig, now: TrainConfig) -> list[str]:
    """The settings that decide a training's result and have changed, each with both values."""
    old, new = _flat(before), _flat(now)
    for values in (old, new):  # null means optimizer.eps
        values["optimizer.eps_adapter"] = values["optimizer.eps_adapter"] or values["optimizer.eps"]
    return [
        f"{name} is {value}, was {old.get(name)}"
        for name, value in new.items()
        if old.get(name) != value and not f"{name}.".startswith(tuple(f"{n}." for n in _FREE))
    ]


def starting_point(
    config: TrainConfig, checkpoint: Checkpoint | None
) -> tuple[FoldingModel, State]:
    """Builds the model that a training begins with, and where the run stands.

    Raises:
        UserError: the base weights are missing or have changed, nothing would be trained, or the
            checkpoint or the run to start from does not fit.
    """
    model, base_hash = build_model(config)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            "model.freeze: with adapter.kind none there is nothing to train; freeze less, or"
            " choose an adapter"
        )
    published = folding_hash(model) if model.published else None
    if checkpoint is not None:
        state = checkpoint.state
        place = checkpoint_folder(config.run, state.step)
        for what, found, expected in (
            ("the language model's weights", base_hash, state.base_sha256),
            ("ESMFold's weights", published, state.esmfold_sha256),
        ):
            if found != expected:
                raise UserError(
                    f"{place}: {what} have changed (SHA-256 {found}, trained with {expected});"
                    " give the file that the run was started with"
                )
        fill_model(model, checkpoint.weights, place)
        return model, state
    if config.start_from is not None:
        load_start(config, model, base_hash)
    state = State(
        step=0,
        ema_updates=0,
        skipped_steps=0,
        guard={},
        order=order_of(config.data, config.seed),
        validation=_validation_hash(config),
        base_sha256=base_hash,
        esmfold_sha256=published,
        processes=1,
        validated=True,
        score=None,
        best=None,
    )
    return model, state


def load_start(config: TrainConfig, model: FoldingModel, base_hash: str) -> None:
    """Fills a model with the moving average of the run that `start_from` names.

    If that run had no adapter, the new one starts untrained.

    Raises:
        UserError: the folder is not a run, or its model does not fit (names the settings).
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
        changes = [
            text
            for text in changed_settings(before, config)
            if text.startswith(("model.", "adapter.")) and not text.startswith(_SHAPELESS)
        ]
        if changes:
            raise UserError(
                f"start_from: the model of {run} does not fit this one ({'; '.join(changes)}); give"
                " it these settings"
            ) from error
        raise


def _validation_hash(config: TrainConfig) -> str | None:
    store = config.data.validation
    return None if store is None else manifest_hash(store)


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every setting by its whole name."""
    if not is_dataclass(config):
        return {prefix.removesuffix("."): config}
    found: dict[str, Any] = {}
    for field in fields(config):
        found |= _flat(getattr(config, field.name), f"{prefix}{field.name}.")
    return found
