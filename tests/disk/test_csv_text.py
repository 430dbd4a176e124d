"""Tables: what is written is read again, and what is no such table is refused by its line."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from esmfold_peft.disk.csv_text import csv_text, read_table
from esmfold_peft.errors import UserError


@dataclass(frozen=True)
class Line:
    name: str
    count: int
    share: float | None


LINES = [
    Line('a,"b"', 1, 0.1),
    Line("", -2, None),
    Line("x\ry\nz", 3, 1e-300),
    Line("m" * 10**6, 4, 0),
]


@pytest.mark.parametrize("lines", [[], LINES, LINES[:2]])
def test_a_table_is_read_as_it_was_written(lines: list[Line], tmp_path: Path):
    (tmp_path / "x.csv").write_text(csv_text(Line, lines), newline="")
    assert read_table(tmp_path / "x.csv", Line, "lines") == lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.csv:1: not a table of lines"),
        ("name,share,count\n", "x.csv:1: not a table of lines"),
        ("name,count,share\na,1,2\nb,,3\n", "x.csv:3: cannot be read as lines"),
        ("name,count,share\na,1\n", "x.csv:2: cannot be read as lines"),
    ],
)
def test_another_table_is_refused(text: str, message: str, tmp_path: Path):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_table(tmp_path / "x.csv", Line, "lines")
