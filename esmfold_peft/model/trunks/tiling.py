"""How the attention kernels cut their work on each card, read from the JSON files in `tiles/`.

`default.json` serves every card; `<card>.json` replaces some of its entries. scripts/gpu_check.py
measures a card's fastest tiles and writes such a file. Copied into that folder, it is used.
"""

import functools
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from esmfold_peft.errors import UserError

FOLDER = Path(__file__).with_name("tiles")

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}

LONGEST_WHOLE = 256
"""Residues; kernels hold all keys of a row at once if it is not longer."""

Key = tuple[str, torch.dtype, bool]
"""Kernel, precision, and whether one block holds a row."""

SIZES = (16, 32, 64, 128, 256)
"""Matrix units multiply 16 rows, and registers hold no more than 256."""

ALLOWED = {"tile": SIZES, "warps": (1, 2, 4, 8, 16, 32), "stages": tuple(range(1, 9))}


@dataclass(frozen=True)
class Tiles:
    """How a kernel cuts its work.

    Attributes:
        tile: queries (or keys) of a program.
        warps: groups of 32 threads of a program.
        stages: loads under way at once.
        block: keys (or queries) at a time; None for all of them.
    """

    tile: int
    warps: int
    stages: int
    block: int | None = None


@functools.cache
def tiles_on(device: torch.device) -> dict[Key, Tiles]:
    """The tiles of a device: those of its card's file, and the default ones for the rest.

    Raises:
        UserError: a file is not valid.
    """
    tiles = read_tiles(FOLDER / "default.json", None)
    file = FOLDER / file_name(card(device))
    return tiles | read_tiles(file, tiles) if file.exists() else tiles


def card(device: torch.device) -> str:
    """The name of a GPU's model as CUDA gives it; "cpu" for any other device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def file_name(card: str) -> str:
    """The file of a card, such as nvidia_h100_80gb_hbm3.json."""
    return re.sub(r"[^A-Za-z0-9]+", "_", card).strip("_").lower() + ".json"


def read_tiles(file: Path, known: dict[Key, Tiles] | None) -> dict[Key, Tiles]:
    """The entries of a file that `write_tiles` wrote.

    Raises:
        UserError: it is not JSON, or an entry has impossible tiles or names a kernel that is not
            `known` (None: all are).
    """
    tiles = {}
    try:
        for entry in json.loads(file.read_text())["tiles"]:
            key, value = _parsed(entry, known)
            tiles[key] = value
    except (KeyError, TypeError, ValueError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{file}: {reason}; measure it again, or remove the file") from error
    return tiles


def write_tiles(file: Path, tiles: dict[Key, Tiles], about: dict[str, object]) -> None:
    """Writes a card's file, an entry a line; `about` tells people where the tiles come from."""
    names = {dtype: name for name, dtype in PRECISIONS.items()}
    entries = [
        json.dumps({"kernel": kernel, "precision": names[dtype], "whole": whole, **asdict(value)})
        for (kernel, dtype, whole), value in tiles.items()
    ]
    listed = ",\n  ".join(entries)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'{{\n "about": {json.dumps(about)},\n "tiles": [\n  {listed}\n ]\n}}\n')


def _parsed(entry: dict[str, Any], known: dict[Key, Tiles] | None) -> tuple[Key, Tiles]:
    """The tiles of one entry, and what they are of."""
    entry = dict(entry)
    kernel, precision, whole = (entry.pop(name) for name in ("kernel", "precision", "whole"))
    name = f'kernel "{kernel}", {precision}, {"whole rows" if whole else "rows in blocks"}'
    dtype, tiles = PRECISIONS.get(precision), Tiles(**entry)
    if dtype is None or (known is not None and (kernel, dtype, whole) not in known):
        raise ValueError(f"there is no {name}")
    for what, allowed in {**ALLOWED, "block": (None,) if whole else SIZES}.items():
        if (value := getattr(tiles, what)) not in allowed:
            raise ValueError(f"{name}: {what} is {value}, not one of {allowed}")
    return (kernel, dtype, whole), tiles
