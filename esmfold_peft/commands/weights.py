"""`esmfold-peft weights`: downloads published weights, and says what a file of them is."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import yaml

from esmfold_peft.config import FetchConfig, InspectConfig
from esmfold_peft.console import print_table
from esmfold_peft.weights.contents import Part, Unused, contents_of, nested
from esmfold_peft.weights.fetch import ESMFOLD, fetch_weights

_SHOWN = 20
"""Differences of a kind in the table; a file of another model has thousands. JSON has all."""


def inspect(config: InspectConfig) -> int:
    """Prints what is in a file.

    Returns:
        0 if all of it fits a model of the printed settings, 1 if something is missing or left over.
    """
    found = contents_of(config.file)
    fits = not found.differences.lines()
    if config.format == "json":
        print(json.dumps({**asdict(found), "fits": fits}, indent=2))
        return 0 if fits else 1
    print(f"{found.file}: {found.kind}")
    print_table(found.parts, Part)
    if found.unused:
        print_table(found.unused, Unused, "not used")
    print("# settings that fit")
    yaml.safe_dump(nested(found.settings), sys.stdout, sort_keys=False)
    for kind, lines in asdict(found.differences).items():
        for line in lines[:_SHOWN]:
            print(f"{kind}: {line}")
        if len(lines) > _SHOWN:
            print(f"{kind}: and {len(lines) - _SHOWN:,} more")
    if fits:
        print("# everything fits")
    return 0 if fits else 1


def fetch(config: FetchConfig) -> int:
    """Downloads weights and prints what they are."""
    folder = config.output or Path("weights") / config.name
    fetched = fetch_weights(config.name, folder)
    print(f"source: {fetched.source}")
    print(f"licence: {fetched.licence or 'not stated there'}")
    for file, sha256 in fetched.hashes.items():
        print(f"{file}: SHA-256 {sha256}, as published")
    parts = ("language_model", "esmfold") if config.name == ESMFOLD else ("language_model",)
    print("use:", *(f"--model.{part}.weights {folder}" for part in parts))
    return 0
