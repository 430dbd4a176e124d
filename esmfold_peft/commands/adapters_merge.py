"""`esmfold-peft adapters merge`: ESM-2 with an adapter written into its weights."""

from pathlib import Path

import torch

from esmfold_peft.adapters.insert import ADAPTERS, attach_adapter
from esmfold_peft.adapters.io import read_adapter, require_base
from esmfold_peft.adapters.merge import merged_parts
from esmfold_peft.config import LanguageModelConfig, MergeConfig, TrainConfig
from esmfold_peft.config.parsing import read_config
from esmfold_peft.console import report
from esmfold_peft.disk.files import make_folder, refuse_existing
from esmfold_peft.errors import UserError
from esmfold_peft.runs.build import build_language_model
from esmfold_peft.runs.run_directory import ADAPTER, CONFIG, adapter_folder
from esmfold_peft.weights.esm2_files import (
    read_esm2_file,
    require_fair_esm,
    with_parts,
    write_fair_esm,
    write_transformers,
)
from esmfold_peft.weights.esm2_weights import find_weights, weights_hash


@torch.no_grad()
def run(config: MergeConfig) -> int:
    """Writes the merged checkpoints.

    Raises:
        UserError: the output is in use, the adapter or the language model cannot be read or do not
            belong together, the adapter cannot be merged, or rounding would lose too much of it.
            Nothing has been written then.
    """
    refuse_existing(config.output)
    language_model, folder = _merged(config)
    if language_model.weights == "random":
        raise UserError("language_model.weights: random has no file that a copy could be made of")
    # Before the language model, whose weights may be gigabytes to download.
    saved = read_adapter(folder)
    lm = build_language_model(language_model, seed=0)
    require_base(saved, lm, folder, weights_hash(lm))
    attach_adapter(lm, saved.adapter, fresh=False)
    source = find_weights(language_model.name, language_model.weights)
    file = read_esm2_file(source, lm.shape)
    if "fair-esm" in config.formats:
        require_fair_esm(file)
    dtype = getattr(torch, config.dtype)
    parts = merged_parts(lm, dtype)
    merged = with_parts(file, parts, dtype)
    make_folder(config.output)
    if "fair-esm" in config.formats:
        report(f"wrote {write_fair_esm(merged, config.output, merged_stem(language_model.name))}")
    if "transformers" in config.formats:
        report(f"wrote {write_transformers(merged, config.output / 'transformers')}")
    lost = max(part.lost for part in parts)
    report(f"rounding to {config.dtype} lost at most {lost:.2g} of an update ({len(parts)} merged)")
    return 0


def merged_stem(name: str) -> str:
    """The name of a merged checkpoint, which fair-esm must recognise as an ESM-2."""
    return f"{name}_merged" if name.startswith("esm2") else f"esm2_{name}_merged"


def _merged(config: MergeConfig) -> tuple[LanguageModelConfig, Path]:
    """The language model and the folder of the adapter."""
    if config.run is None:
        assert config.adapter is not None
        return config.language_model, adapter_folder(config.adapter)
    path = config.run / CONFIG
    if not path.is_file():
        raise UserError(f"{config.run}: not the folder of a training run (it has no {CONFIG})")
    trained = read_config(path, TrainConfig)
    if trained.adapter.kind not in ADAPTERS:
        raise UserError(f"{path}: adapter.kind is {trained.adapter.kind}, there is none to merge")
    return trained.model.language_model, config.run / ADAPTER
