"""`esmfold-peft adapters import`: an adapter of Hugging Face PEFT, or of LoRTA's authors."""

from esmfold_peft.adapter_commands.folders import refuse_existing
from esmfold_peft.adapters.io import CONFIG_FILE, read_json, save_adapter
from esmfold_peft.adapters.lorta_fork import read_fork
from esmfold_peft.adapters.peft_files import read_peft
from esmfold_peft.config import ImportConfig
from esmfold_peft.console import report
from esmfold_peft.model.build import build_language_model
from esmfold_peft.model.esm2_weights import weights_hash


def run(config: ImportConfig) -> int:
    """Reads an adapter of another program and saves it as this one does.

    Raises:
        UserError: the adapter cannot be read or does not fit the language model, whose weights
            cannot be had, or the output folder is not empty.
    """
    refuse_existing(config.output)
    header = read_json(config.adapter / CONFIG_FILE)
    read = read_fork if header.get("peft_type") == "LORTA" else read_peft
    language_model = build_language_model(config.language_model, seed=0)
    adapter = read(config.adapter, language_model.shape, config.kind)
    save_adapter(adapter, config.output, weights_hash(language_model))
    parameters = sum(parameter.numel() for parameter in adapter.parameters())
    scale = "" if adapter.scale is None else f" (scale {adapter.scale:g})"
    report(f"{adapter.config.kind} of {parameters:,} parameters{scale} in {config.output}")
    return 0
