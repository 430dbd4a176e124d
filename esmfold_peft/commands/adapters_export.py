"""`esmfold-peft adapters export`: an adapter as a file of another program."""

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.io import read_adapter
from esmfold_peft.adapters.peft_files import write_peft
from esmfold_peft.adapters.sizes import SIZES
from esmfold_peft.config import ExportConfig
from esmfold_peft.console import report
from esmfold_peft.disk.files import refuse_existing
from esmfold_peft.runs.run_directory import adapter_folder


def run(config: ExportConfig) -> int:
    """Writes an adapter for Hugging Face PEFT.

    Raises:
        UserError: there is no adapter, PEFT cannot express it, or the output folder is not empty.
    """
    refuse_existing(config.output)
    adapter = read_adapter(adapter_folder(config.adapter)).adapter
    write_peft(adapter, config.output, config.base_model or _official_name(adapter.shape))
    parameters = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
    report(f"{adapter.config.kind} of {parameters:,} parameters in {config.output}, for PEFT")
    return 0


def _official_name(shape: AttentionShape) -> str | None:
    """Hugging Face's name of the ESM-2 of these sizes, None for other sizes."""
    return next((f"facebook/{name}" for name, size in SIZES.items() if size == shape), None)
