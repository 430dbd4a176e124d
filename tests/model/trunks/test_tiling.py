"""Tiles of the attention kernels: the files of cards, and which entries are refused."""

import json
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

import pytest
import torch

from esmfold_peft.errors import UserError
from esmfold_peft.model.trunks import attention, tiling
from esmfold_peft.model.trunks.tiling import Tiles

ROOT = Path(__file__).parents[3]
DEFAULT = tiling.read_tiles(tiling.FOLDER / "default.json", None)
KEY = ("key", torch.bfloat16, False)
ENTRY = {"kernel": "key", "precision": "bf16", "whole": False, "tile": 32, "warps": 2, "stages": 3}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the default tiles, on a machine with some card."""
    tiling.write_tiles(tmp_path / "default.json", DEFAULT, {})
    monkeypatch.setattr(tiling, "FOLDER", tmp_path)
    monkeypatch.setattr(tiling, "card", lambda device: "NVIDIA H100 80GB HBM3")
    tiling.tiles_on.cache_clear()
    yield tmp_path
    tiling.tiles_on.cache_clear()


def on_card() -> dict[tiling.Key, Tiles]:
    return tiling.tiles_on(torch.device("cuda", 0))


def test_a_card_without_a_file_has_the_default_tiles(folder):
    assert on_card() == DEFAULT
    # Each kernel in each precision; the one of the bias takes rows in blocks only.
    assert len(DEFAULT) == 14
    assert ("bias", torch.bfloat16, True) not in DEFAULT


def test_a_card_s_file_replaces_the_entries_that_it_has(folder):
    found = Tiles(32, 2, 3, block=128)
    tiling.write_tiles(folder / "nvidia_h100_80gb_hbm3.json", {KEY: found}, {"date": "today"})
    assert on_card() == DEFAULT | {KEY: found}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kernel": "keys"}, 'there is no kernel "keys", bf16, rows in blocks'),
        (
            {"kernel": "bias", "whole": True, "block": None},
            'there is no kernel "bias", bf16, whole',
        ),
        ({"precision": "fp16"}, 'there is no kernel "key", fp16'),
        ({"tile": 48}, "tile is 48, not one of (16, 32, 64, 128, 256)"),
        ({"tile": 8}, "tile is 8, not"),
        ({"block": None}, "block is None, not"),
        ({"whole": True}, "block is 64, not one of (None,)"),
        ({"warps": 3}, "warps is 3, not"),
        ({"stages": 0}, "stages is 0, not"),
        ({"stage": 2}, "unexpected keyword argument 'stage'"),
    ],
)
def test_an_impossible_entry_is_refused_in_a_line_that_names_the_file(folder, change, says):
    file = folder / "nvidia_h100_80gb_hbm3.json"
    file.write_text(json.dumps({"tiles": [ENTRY | {"block": 64} | change]}))
    with pytest.raises(UserError) as refused:
        on_card()
    assert str(refused.value).startswith(f"{file}: ")
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"tile": []}', '{"tiles": [{"kernel": "key"}]}'])
def test_a_file_of_another_form_is_refused(folder, text):
    (folder / "nvidia_h100_80gb_hbm3.json").write_text(text)
    with pytest.raises(UserError, match=r"nvidia_h100_80gb_hbm3\.json: .*; measure it again"):
        on_card()


def test_a_refused_file_stops_the_run_instead_of_taking_the_slow_path(folder, monkeypatch):
    kernels = ModuleType("kernels")
    kernels.forward = lambda *arguments: on_card()
    (folder / "nvidia_h100_80gb_hbm3.json").write_text("{")
    monkeypatch.setattr(attention, "_load_kernels", lambda: kernels)
    with pytest.raises(UserError, match="nvidia_h100"):
        attention.checked_kernels.__wrapped__(torch.device("cpu"), 32, torch.bfloat16, 64)


def test_the_files_of_tiles_are_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["esmfold_peft.model.trunks"]
    for file in tiling.FOLDER.iterdir():
        assert any(fnmatch(f"tiles/{file.name}", pattern) for pattern in patterns), file.name


def test_every_file_of_a_card_is_valid():
    for file in tiling.FOLDER.glob("*.json"):
        assert tiling.read_tiles(file, DEFAULT)
