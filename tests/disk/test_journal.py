"""One journal serves the search's ledger, a trial's attempts and a prediction's rows."""

import json
from pathlib import Path

import pytest

from esmfold_peft.disk.journal import Journal, whole_lines
from esmfold_peft.errors import BusyError, UserError


def test_half_a_line_that_a_kill_has_left_is_not_read_and_is_dropped(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    assert whole_lines(path) == []
    Journal(path).add({"number": 1})
    with path.open("ab") as file:
        file.write(b'{"numb')
    assert [json.loads(line) for line in whole_lines(path)] == [{"number": 1}]
    Journal(path).add({"number": 2})
    assert [json.loads(line) for line in whole_lines(path)] == [{"number": 1}, {"number": 2}]
    assert path.read_bytes().endswith(b"}\n")


def test_a_journal_that_is_locked_is_not_repaired_under_its_owner(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    owner = Journal(path, lock=True)
    path.write_bytes(b"half a line")
    with pytest.raises(BusyError, match="another process writes"):
        Journal(path, lock=True)
    assert path.read_bytes() == b"half a line"
    owner.add({})


def test_a_journal_that_cannot_be_written_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=rf"^{tmp_path}: "):
        Journal(tmp_path)
