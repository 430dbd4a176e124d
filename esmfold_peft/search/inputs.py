"""The files that decide the scores of a search's trials, by their content.

`train --resume auto` compares these with those of the run that it goes on with. A trial that has
not begun has nothing to compare with, and the ladder compares trials with each other.
"""

import hashlib
import json
from pathlib import Path

from esmfold_peft.config import SearchConfig, TrunkConfig
from esmfold_peft.datasets.position import manifest_hash, order_of
from esmfold_peft.disk.files import read_json, write_atomically
from esmfold_peft.errors import UserError
from esmfold_peft.runs.run_directory import WEIGHTS, run_config

INPUTS = "inputs.json"

_NO_FILES = ("pretrained", "random")
"""Weights that their names decide."""


def inputs_of(config: SearchConfig) -> dict[str, str | None]:
    """Hashes of chains, weights and the model that trials start with, by the names of settings.

    Raises:
        UserError: a file is missing.
    """
    order = order_of(config.data, 0)
    assert config.data.validation is not None
    start = config.start_from
    if start is not None:
        run_config(start)  # or it is no run
    return {
        "data.train": order["data.train"],
        "data.mix": order["data.mix"],
        "data.validation": f"manifest {manifest_hash(config.data.validation)[:16]}",
        "model.language_model.weights": _content(
            "model.language_model.weights", config.model.language_model.weights
        ),
        **_published(config.model.section),
        "start_from": start and _content("start_from", str(start / WEIGHTS)),
    }


def require_same_inputs(output: Path, found: dict[str, str | None]) -> None:
    """Keeps the inputs of a search, or compares them where it is gone on with.

    Args:
        output: folder of the search.
        found: `inputs_of` its settings.

    Raises:
        UserError: names every setting whose files are others.
    """
    path = output / INPUTS
    if not path.is_file():
        write_atomically(path, json.dumps(found, indent=2) + "\n")
        return
    before = read_json(path)
    changes = [f"{n} is {v}, was {before.get(n)}" for n, v in found.items() if v != before.get(n)]
    if changes:
        raise UserError(
            f"output: {output} was begun with other files ({'; '.join(changes)}), and its trials"
            " could not be compared; give it the same, or begin another search"
        )


def _published(section: TrunkConfig) -> dict[str, str]:
    setting = f"model.{section.name}.weights"
    return {setting: _content(setting, section.weights)} if section.published else {}


def _content(setting: str, weights: str) -> str:
    """What decides weights: the hash of a file or of all files of a folder, or their name."""
    if weights in _NO_FILES:
        return weights
    path, digest = Path(weights), hashlib.sha256()
    try:
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        for file in inside:
            if not file.is_dir():
                with file.open("rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
    except OSError as error:
        raise UserError(f"{setting}: {error.filename}: {error.strerror}") from error
    return f"sha256 {digest.hexdigest()[:16]}"
