"""Where commands find an adapter, and where they may write."""

from pathlib import Path

from esmfold_peft.errors import UserError
from esmfold_peft.training.run_directory import ADAPTER, CONFIG


def adapter_folder(folder: Path) -> Path:
    """The folder of an adapter, given that or the folder of its run."""
    return folder / ADAPTER if (folder / CONFIG).is_file() else folder


def refuse_existing(output: Path) -> None:
    """Checks that a command would not write over something else.

    Raises:
        UserError: the folder exists and is not empty.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"output: {output} exists already; choose another folder")
