"""Stores made of the example's chains, and what is in them."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from esmfold_peft.commands.prepare import run
from esmfold_peft.config import PrepareConfig


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., Path]:
    """Runs the command with one worker and without mmseqs; gives the store's folder."""

    def prepared(*sources: Path, **settings) -> Path:
        chosen = {"output": tmp_path / "store", "workers": 1, "clusters": "none", **settings}
        assert run(PrepareConfig(sources=sources, **chosen)) == 0
        return chosen["output"]

    return prepared


def contents(store: Path) -> dict[str, dict[bytes, bytes]]:
    """Every table of a store's file."""
    with lmdb.open(
        str(store / "chains.lmdb"), subdir=False, readonly=True, lock=False, max_dbs=3
    ) as env:
        names = (b"chains", b"journal", b"about")
        tables = {name.decode(): env.open_db(name, create=False) for name in names}
        with env.begin() as transaction:
            return {name: dict(transaction.cursor(db=table)) for name, table in tables.items()}


def rows(store: Path, name: str) -> list[dict[str, str]]:
    """The lines of one of a store's tables."""
    with (store / name).open(newline="") as file:
        return list(csv.DictReader(file))


def report_of(store: Path) -> dict:
    """The numbers of report.json."""
    return json.loads((store / "report.json").read_text())
