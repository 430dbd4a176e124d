"""From settings to a folding model."""

import torch

from esmfold_peft.adapters.base import AttentionShape, size_of
from esmfold_peft.adapters.insert import insert_adapter
from esmfold_peft.config import LanguageModelConfig, TrainConfig
from esmfold_peft.errors import UserError
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.heads import HEADS
from esmfold_peft.model.language_model import LanguageModel
from esmfold_peft.weights.esm2_weights import find_weights, load_esm2, weights_hash
from esmfold_peft.weights.esmfold_weights import PUBLISHED


def build_model(config: TrainConfig) -> tuple[FoldingModel, str]:
    """Builds the model of a run at its start: published weights loaded, the rest random.

    The global random generator is left as it was. Raises UserError if the language model is
    unknown, or weights cannot be had or do not fit.

    Returns:
        The model, in which only what the run trains is not frozen, and the SHA-256 of the language
        model's base weights.
    """
    language_model = build_language_model(config.model.language_model, config.seed)
    base = weights_hash(language_model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = FoldingModel(
            language_model,
            config.model,
            bf16=config.engine.precision == "bf16",
            compile=config.engine.compile is True,
        )
        if (weights := config.model.section.weights) != "random":
            PUBLISHED[type(model.trunk.stack)](model, weights)
            model.published = True
        _freeze(model, config)
        # Last, so that runs that differ in the adapter start from the same trunk and head.
        insert_adapter(language_model, config.adapter)
        return model, base


def _freeze(model: FoldingModel, config: TrainConfig) -> None:
    """Freezes the parts that the run is told to keep, and heads whose loss has no weight."""
    parts = {name: part for name, part in model.named_children() if name != "language_model"}
    for name, part in parts.items():
        head = name.removesuffix("_head")
        idle = head in HEADS and not getattr(config.loss.weights, head)
        kept = ("trunk" if name == "trunk" else "head") in config.model.freeze
        if idle or kept:
            part.requires_grad_(False)


def build_language_model(config: LanguageModelConfig, seed: int) -> LanguageModel:
    """A language model with its base weights and no adapter; random ones are drawn from `seed`.

    The global random generator is left as it was.
    """
    shape = language_model_shape(config)
    if config.weights == "random":
        return LanguageModel.random(shape, seed=seed, recompute=config.recompute)
    file = find_weights(config.name, config.weights)
    with torch.device("meta"):  # no random start for weights that are read from the file
        language_model = LanguageModel(shape, recompute=config.recompute)
    load_esm2(language_model, file)
    return language_model


def language_model_shape(config: LanguageModelConfig) -> AttentionShape:
    """The sizes of a language model, without reading a file."""
    sizes = {name: getattr(config, name) for name in ("layers", "width", "heads")}
    if config.name != "custom":
        given = [name for name, size in sizes.items() if size is not None]
        if given:
            raise UserError(
                f"model.language_model.{given[0]}: only for the name custom, not {config.name}"
            )
        return size_of(config.name)
    missing = [name for name, size in sizes.items() if size is None]
    if missing:
        raise UserError(f"model.language_model.{missing[0]}: needed for the name custom")
    return AttentionShape(**sizes)
