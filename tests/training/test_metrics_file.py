"""metrics.csv is appended to, read while it grows, and survives kills and resumes."""

import csv
import math
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from esmfold_peft.errors import UserError
from esmfold_peft.training.metrics_file import MetricsFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file will be."""
    return tmp_path / "metrics.csv"


def rows(path: Path) -> list[dict[str, str]]:
    """The file as readers see it."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def logged(path: Path, count: int = 3) -> MetricsFile:
    """A file with some steps of two metrics."""
    file = MetricsFile(path)
    for step in range(1, count + 1):
        file.log({"a": step / 10, "b": step}, step)
    return file


def test_a_line_is_there_as_soon_as_it_is_logged(path: Path):
    file = MetricsFile(path)
    assert not path.exists()
    file.log({"train/loss": 0.1 + 0.2, "train/skipped": 2}, 10)
    assert path.read_text() == "step,train/loss,train/skipped\n10,0.30000000000000004,2\n"


def test_appending_leaves_what_is_there_alone(path: Path):
    file = logged(path)
    before, inode = path.read_bytes(), path.stat().st_ino
    file.log({"a": 0.4, "b": 4}, 4)
    assert path.stat().st_ino == inode
    assert path.read_bytes() == before + b"4,0.4,4\n"


def test_metrics_of_one_step_share_a_line(path: Path):
    file = logged(path)
    file.log({"validation": 0.5}, 3)
    file.log({"a": 0.4}, 4)
    file.log({"validation": 0.6, "b": 4}, 4)
    assert path.read_text().splitlines() == [
        "step,a,b,validation", "1,0.1,1,", "2,0.2,2,", "3,0.3,3,0.5", "4,0.4,4,0.6",
    ]  # fmt: skip


def test_a_shorter_value_leaves_nothing_of_the_longer_one(path: Path):
    file = logged(path)
    file.log({"a": 1 / 3}, 4)
    file.log({"a": 0.5}, 4)
    assert path.read_text().splitlines()[-1] == "4,0.5,"


def test_a_new_column_keeps_the_old_lines(path: Path):
    file = logged(path)
    file.log({"c": 7.0, "a": 0.4}, 4)
    file.log({"a": 0.5}, 5)
    assert path.read_text() == ("step,a,b,c\n1,0.1,1,\n2,0.2,2,\n3,0.3,3,\n4,0.4,,7.0\n5,0.5,,\n")
    assert [p.name for p in path.parent.iterdir()] == ["metrics.csv"]


def test_numbers_are_kept_exactly(path: Path):
    values = {"nan": math.nan, "inf": -math.inf, "tiny": 5e-324, "third": 1 / 3, "big": 2**60}
    MetricsFile(path).log(values, 0)
    (row,) = rows(path)
    assert row["big"] == str(2**60)
    found = {name: float(row[name]) for name in values}
    assert found.pop("nan") != values.pop("nan")
    assert found == values


def test_a_step_out_of_order_is_an_error(path: Path):
    file = logged(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="step 2 is logged after step 3"):
        file.log({"a": 1.0}, 2)
    assert path.read_bytes() == before


def test_a_resumed_run_continues_after_its_checkpoint(path: Path):
    logged(path, 5)
    file = MetricsFile(path)
    file.rewind(3)
    assert [row["step"] for row in rows(path)] == ["1", "2", "3"]
    file.log({"validation": 0.5}, 3)  # the step that was saved may be validated again
    file.log({"a": 0.7, "b": 4}, 4)
    assert path.read_text().splitlines()[3:] == ["3,0.3,3,0.5", "4,0.7,4,"]


def test_rewinding_also_works_on_an_open_file_and_on_none(path: Path):
    MetricsFile(path).rewind(3)
    assert not path.exists()
    file = logged(path)
    file.rewind(0)
    assert path.read_text() == "step,a,b\n"
    file.log({"a": 9.0}, 1)
    assert rows(path) == [{"step": "1", "a": "9.0", "b": ""}]


def test_rewinding_to_the_last_step_does_not_write(path: Path):
    logged(path)
    inode = path.stat().st_ino
    MetricsFile(path).rewind(3)
    assert path.stat().st_ino == inode


@pytest.mark.parametrize("length", range(1, 27))
def test_a_file_cut_off_anywhere_is_resumed(length: int, path: Path):
    logged(path)
    whole = path.read_bytes()
    assert len(whole) == 9 + 3 * 8 == 33
    path.write_bytes(whole[:length])
    left = max(0, (length - 9) // 8)  # lines that are whole
    file = MetricsFile(path)
    file.log({"a": 0.9, "b": 9}, 9)
    assert path.read_bytes() == whole[: 9 + 8 * left] + b"9,0.9,9\n"


@pytest.mark.parametrize(
    "rest", [b"4,0.4", b"4,0.4,4", b"\0" * 512, b"4\n", b"345\n", b"2,0.1,1\n"]
)
def test_a_torn_last_line_is_dropped(rest: bytes, path: Path):
    logged(path)
    whole = path.read_bytes()
    path.write_bytes(whole + rest)
    MetricsFile(path).rewind(100)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2,0.2,2", "2,0.2", r"metrics\.csv:3: 2 cells, the header has 3"),
        ("2,0.2,2", "x,0.2,2", r"metrics\.csv:3: 'x' is not a step"),
        ("2,0.2,2", "1,0.2,2", r"metrics\.csv:3: step 1 is after step 1"),
        ("2,0.2,2", "2,0.z,2", r"metrics\.csv:3: '0.z' is not a number"),
        ("2,0.2,2", "", r"metrics\.csv:3: 1 cells"),
        ("step,a,b", "a,b,step", r"metrics\.csv:1: 'a,b,step' is not the header"),
        ("step,a,b", "step,a,a", r"metrics\.csv:1: "),
    ],
)
def test_damage_elsewhere_is_named_and_left_alone(old: str, new: str, message: str, path: Path):
    logged(path)
    path.write_text(path.read_text().replace(old, new))
    before = path.read_bytes()
    for act in (lambda: MetricsFile(path).rewind(1), lambda: logged(path)):
        with pytest.raises(UserError, match=message):
            act()
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"absent/metrics\.csv: No such file"):
        MetricsFile(tmp_path / "absent" / "metrics.csv").log({"a": 1.0}, 1)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder: Is a directory"):
        MetricsFile(tmp_path / "folder").rewind(1)


def log_on_and_on(path: Path) -> None:
    """Logs ten thousand steps, every third in two parts, and a new column now and then."""
    file = MetricsFile(path)
    for step in range(1, 10_000):
        file.log({"a": step / 3, "b": -step / 7}, step)
        if step % 3 == 0:
            file.log({f"c{step // 100}": step / 9}, step)
        time.sleep(0.001)


def test_a_killed_run_leaves_a_file_that_can_be_resumed(path: Path):
    # A fork has imported everything already.
    process = get_context("fork").Process(target=log_on_and_on, args=(path,))
    process.start()
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size > 8000):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    MetricsFile(path).log({"a": 1.0}, 10**9)
    found = rows(path)
    assert len(found) > 150
    for n, row in enumerate(found[:-1], 1):
        assert (int(row["step"]), float(row["a"]), float(row["b"])) == (n, n / 3, -n / 7)
        third = [float(v) for k, v in row.items() if k.startswith("c") and v]
        # The last line may have been killed between its two parts.
        assert third == ([n / 9] if n % 3 == 0 else []) or n == len(found) - 1
