"""`esmfold-peft adapters import`: an adapter of Hugging Face PEFT, or of a method's authors."""

from esmfold_peft.adapters.base import Adapter, AttentionShape
from esmfold_peft.adapters.io import CONFIG_FILE, save_adapter
from esmfold_peft.adapters.lorta_fork import read_fork
from esmfold_peft.adapters.peft_files import read_peft
from esmfold_peft.adapters.tt_lora_files import CORES_FILE, library_alpha, read_cores
from esmfold_peft.config import ImportConfig
from esmfold_peft.console import report
from esmfold_peft.disk.files import read_json, refuse_existing
from esmfold_peft.errors import UserError
from esmfold_peft.runs.build import build_language_model, language_model_shape
from esmfold_peft.weights.checkpoint_files import only_tensors, read_pt
from esmfold_peft.weights.esm2_weights import weights_hash


def run(config: ImportConfig) -> int:
    """Reads an adapter of another program and saves it as this one does.

    Raises:
        UserError: the adapter cannot be read or does not fit the language model, whose weights
            cannot be had, or the output folder is not empty.
    """
    refuse_existing(config.output)
    # Before the language model, whose weights may be gigabytes to download.
    adapter = _read(config, language_model_shape(config.language_model))
    language_model = build_language_model(config.language_model, seed=0)
    save_adapter(adapter, config.output, weights_hash(language_model))
    parameters = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
    scale = "" if adapter.scale is None else f" (scale {adapter.scale:g})"
    report(f"{adapter.config.kind} of {parameters:,} parameters{scale} in {config.output}")
    return 0


def _read(config: ImportConfig, shape: AttentionShape) -> Adapter:
    """The adapter, by the program that wrote it."""
    if config.adapter.is_file():
        if config.alpha is None or config.order is None:
            raise UserError(
                f"{config.adapter}: a file is read as cores of TT-LoRA: give alpha and order"
                " (reconstruction or contraction); for PEFT give the folder"
            )
        _refuse_lora_fa(config)
        cores = only_tensors(read_pt(config.adapter), config.adapter)
        return read_cores(cores, shape, config.alpha, config.order, config.adapter)
    path = config.adapter / CONFIG_FILE
    header = read_json(path)
    if "base_sha256" in header:
        raise UserError(f"{path}: an adapter of this program, which needs no import")
    if config.alpha is not None or config.order is not None:
        raise UserError("alpha and order: for a .pth file of TT-LoRA alone; leave them out")
    if "targets" in header and "peft_type" not in header:
        _refuse_lora_fa(config)
        file = config.adapter / CORES_FILE
        cores = only_tensors(read_pt(file), file)
        alpha = library_alpha(header, cores, path)
        return read_cores(cores, shape, alpha, "contraction", file)
    read = read_fork if header.get("peft_type") == "LORTA" else read_peft
    return read(config.adapter, shape, config.kind)


def _refuse_lora_fa(config: ImportConfig) -> None:
    if config.kind != "auto":
        raise UserError(f"{config.adapter}: only a LoRA can go on as {config.kind}, not tt_lora")
