"""`esmfold-peft adapters`: count, merge, export and import adapters."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from esmfold_peft.adapters.base import SIZES, Adapter, AttentionShape, size_of
from esmfold_peft.adapters.insert import ADAPTERS, attach_adapter
from esmfold_peft.adapters.insert import count as parameter_count
from esmfold_peft.adapters.io import CONFIG_FILE, read_adapter, require_base, save_adapter
from esmfold_peft.adapters.merge import merged_parts
from esmfold_peft.adapters.peft_files import read_peft, write_peft
from esmfold_peft.adapters.table1 import Table1Row, table1
from esmfold_peft.adapters.tt_lora_files import CORES_FILE, Order, library_alpha, read_cores
from esmfold_peft.config import (
    AdapterConfig,
    AdapterKind,
    CountConfig,
    ExportConfig,
    ImportConfig,
    LanguageModelConfig,
    MergeConfig,
)
from esmfold_peft.config.adapter import WITHOUT_RANK, unused_settings
from esmfold_peft.console import print_table, report
from esmfold_peft.disk.csv_text import csv_text
from esmfold_peft.disk.files import make_folder, read_json, refuse_existing
from esmfold_peft.errors import UserError
from esmfold_peft.runs.build import build_language_model, language_model_shape
from esmfold_peft.runs.run_directory import ADAPTER, CONFIG, adapter_folder, run_config
from esmfold_peft.weights.esm2_weights import find_weights, weights_hash
from esmfold_peft.weights.merged_files import (
    read_esm2_file,
    require_fair_esm,
    with_parts,
    write_fair_esm,
    write_transformers,
)
from esmfold_peft.weights.tensor_files import only_tensors, read_pt


@dataclass(frozen=True)
class CountRow:
    """One adapter's numbers, or in `note` why the method cannot adapt the targets."""

    model: str
    kind: str
    rank: int | None
    trainable: int | None
    frozen: int | None
    note: str


def count(config: CountConfig) -> int:
    """Prints how many numbers each method trains."""
    if config.reference is not None:
        title = "Table 1 of the LoRTA paper: Llama2-7B, query and value"
        _print(list(table1()), Table1Row, config.format, title)
        return 0
    names = list(SIZES) if "all" in config.models else config.models
    shapes = {name: size_of(name) for name in names}
    rows = [row for name, shape in shapes.items() for row in _count_rows(name, shape, config)]
    _print(rows, CountRow, config.format, f"adapters of {', '.join(config.targets)}")
    return 0


def _count_rows(name: str, shape: AttentionShape, config: CountConfig) -> Iterator[CountRow]:
    """Counts every method and rank on one language model."""
    for kind in config.kinds or cast(tuple[AdapterKind, ...], tuple(ADAPTERS)):
        ranks = (None,) if kind in WITHOUT_RANK else config.ranks
        rows = [_count_row(name, shape, kind, rank, config) for rank in ranks]
        # What a method cannot adapt does not depend on the rank.
        yield from [replace(rows[0], rank=None)] if rows[0].note else rows


def _count_row(
    name: str, shape: AttentionShape, kind: AdapterKind, rank: int | None, config: CountConfig
) -> CountRow:
    names = {"tt_rank", "bases", "norms"} - unused_settings(kind)
    own = {name: getattr(config, name) for name in names}
    adapter = AdapterConfig(kind=kind, rank=rank or 1, targets=config.targets, **own)
    try:
        return CountRow(name, kind, rank, *parameter_count(shape, adapter), "")
    except UserError as error:
        return CountRow(name, kind, rank, None, None, str(error).partition(": ")[2])


def _print(rows: Sequence[CountRow | Table1Row], kind: type, form: str, title: str) -> None:
    if form == "csv":
        sys.stdout.write(csv_text(kind, rows))
    elif form == "json":
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        print_table(rows, kind, title, grouped=True)


@torch.no_grad()
def merge(config: MergeConfig) -> int:
    """Writes ESM-2 with an adapter in its weights; if anything is refused, nothing is written."""
    refuse_existing(config.output)
    language_model, folder = _to_merge(config)
    if language_model.weights == "random":
        raise UserError(
            "language_model.weights: random has no file to copy from; give the file that the"
            " adapter was trained on"
        )
    # Before the language model, whose weights may be gigabytes to download.
    saved = read_adapter(folder)
    lm = build_language_model(language_model, seed=0)
    require_base(saved, lm, folder, weights_hash(lm))
    attach_adapter(lm, saved.adapter, fresh=False)
    file = read_esm2_file(find_weights(language_model.name, language_model.weights), lm.shape)
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


def _to_merge(config: MergeConfig) -> tuple[LanguageModelConfig, Path]:
    """The language model and the folder of the adapter."""
    if config.run is None:
        assert config.adapter is not None
        return config.language_model, adapter_folder(config.adapter)
    trained = run_config(config.run)
    if trained.adapter.kind not in ADAPTERS:
        path = config.run / CONFIG
        raise UserError(f"{path}: adapter.kind is {trained.adapter.kind}, there is none to merge")
    return trained.model.language_model, config.run / ADAPTER


def export(config: ExportConfig) -> int:
    """Writes an adapter for Hugging Face PEFT."""
    refuse_existing(config.output)
    adapter = read_adapter(adapter_folder(config.adapter)).adapter
    official = next((f"facebook/{n}" for n, size in SIZES.items() if size == adapter.shape), None)
    write_peft(adapter, config.output, config.base_model or official)
    report(f"{_described(adapter)} in {config.output}, for PEFT")
    return 0


def import_adapter(config: ImportConfig) -> int:
    """Reads an adapter of another program and saves it as this one does."""
    refuse_existing(config.output)
    # Before the language model, whose weights may be gigabytes to download.
    adapter = _imported(config, language_model_shape(config.language_model))
    language_model = build_language_model(config.language_model, seed=0)
    save_adapter(adapter, config.output, weights_hash(language_model))
    scale = "" if adapter.scale is None else f" (scale {adapter.scale:g})"
    report(f"{_described(adapter)}{scale} in {config.output}")
    return 0


def _imported(config: ImportConfig, shape: AttentionShape) -> Adapter:
    """The adapter, by the program that wrote it."""
    if config.adapter.is_file():
        if config.alpha is None or config.order is None:
            raise UserError(
                f"{config.adapter}: a file is read as cores of TT-LoRA: give alpha and order"
                " (reconstruction or contraction); for PEFT give the folder"
            )
        return _tt_lora(config, shape, config.adapter, config.alpha, config.order)
    path = config.adapter / CONFIG_FILE
    header = read_json(path)
    if "base_sha256" in header:
        raise UserError(f"{path}: this program wrote this adapter; use it without importing it")
    if config.alpha is not None or config.order is not None:
        raise UserError("alpha and order: for a .pth file of TT-LoRA alone; leave them out")
    if "targets" in header and "peft_type" not in header:
        return _tt_lora(config, shape, config.adapter / CORES_FILE, header, "contraction")
    return read_peft(config.adapter, shape, config.kind)


def _tt_lora(
    config: ImportConfig,
    shape: AttentionShape,
    file: Path,
    alpha: float | dict[str, Any],
    order: Order,
) -> Adapter:
    """An adapter of TT-LoRA's authors; alpha, or the header that has it."""
    if config.kind != "auto":
        raise UserError(
            f"{config.adapter}: only a LoRA can become {config.kind}, this is tt_lora;"
            " use --kind auto"
        )
    cores = only_tensors(read_pt(file), file)
    if isinstance(alpha, dict):
        alpha = library_alpha(alpha, cores, config.adapter / CONFIG_FILE)
    return read_cores(cores, shape, alpha, order, file)


def _described(adapter: Adapter) -> str:
    parameters = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
    return f"{adapter.config.kind} of {parameters:,} parameters"
