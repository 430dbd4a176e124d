"""What was found: rows, kept in a JSON file from the first one on, and a table of them."""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from rich import box
from rich.markup import escape
from rich.table import Table

from esmfold_peft.disk.files import write_atomically

Status = Literal["passed", "failed", "skipped"]
_COLOURS: dict[Status, str] = {"passed": "green", "failed": "bold red", "skipped": "yellow"}


@dataclass(frozen=True)
class Row:
    """One result.

    Attributes:
        name: what was checked or measured.
        status: a measurement is always passed.
        value: what was found; None where nothing could be.
        limit: the goal of the value; None if it has none.
        unit: of value and limit.
        seconds: time since the row before it in the same check.
        detail: for people.
        check: that gave it.
    """

    name: str
    status: Status
    value: float | str | None = None
    limit: float | None = None
    unit: str = ""
    seconds: float = 0.0
    detail: str = ""
    check: str = ""


def measured(name: str, value: float | str, unit: str = "", *, detail: str = "") -> Row:
    """A measurement."""
    return Row(name, "passed", value, unit=unit, detail=detail)


def against_goal(name: str, value: float, goal: float, unit: str, *, detail: str = "") -> Row:
    """A measurement beside the value it should not exceed; missing the goal is no failure."""
    verdict = "reached" if value <= goal else f"missed {value / goal:.2f}-fold"
    detail = f"goal of {goal:g} {unit} {verdict}" + (f"; {detail}" if detail else "")
    return Row(name, "passed", value, goal, unit, detail=detail)


def skipped(name: str, reason: str) -> Row:
    """Something that could not be measured here."""
    return Row(name, "skipped", detail=reason)


def failed(name: str, reason: str) -> Row:
    """A check that did not end, or found an error."""
    return Row(name, "failed", detail=reason)


@dataclass(eq=False)
class Report:
    """The rows so far; each is in the file as soon as it is added.

    Attributes:
        path: JSON file.
        header: circumstances, as JSON takes them.
        rows: in the order of the checks.
        ended: checks whose rows are all there.
    """

    path: Path
    header: dict[str, object] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    def resume(self, file: Path, alike: dict[str, object]) -> None:
        """Takes the rows of the checks that ended in an earlier call, whose header has `alike` too.

        Raises:
            SystemExit: it is no report, or one of something else.
        """
        try:
            content = json.loads(file.read_text())
            ended, rows = content["ended"], [Row(**row) for row in content["rows"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SystemExit(f"gpu_check: --resume: {file}: not a report ({error})") from error
        for name, value in alike.items():
            if (found := content.get(name)) != value:
                raise SystemExit(
                    f"gpu_check: --resume: {file}: its {name} is {found}, here it is {value};"
                    " begin a new report"
                )
        self.ended, self.rows = ended, [row for row in rows if row.check in ended]

    def end(self, check: str) -> None:
        """Notes that a check has given all its rows."""
        self.ended.append(check)
        self.write()

    def add(self, row: Row) -> None:
        """Keeps a row and writes the file."""
        value = row.value
        if isinstance(value, float) and not math.isfinite(value):
            value = str(value)  # JSON has no NaN and no infinity
        self.rows.append(replace(row, value=value, seconds=round(row.seconds, 2)))
        self.write()

    def write(self) -> None:
        """Writes all that is known; a reader never sees half of it."""
        counts = {status: sum(row.status == status for row in self.rows) for status in _COLOURS}
        content = {**self.header, "counts": counts, "ended": self.ended}
        content["rows"] = [asdict(row) for row in self.rows]
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(self.path, text + "\n")

    def table(self) -> Table:
        """All rows for people."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("check", "status", "value", "goal", "s", "detail"):
            right = column in ("value", "goal", "s")
            table.add_column(column, justify="right" if right else "left", overflow="fold")
        for row in self.rows:
            table.add_row(
                escape(row.name),
                f"[{_COLOURS[row.status]}]{row.status}[/]",
                shown(row.value, row.unit),
                shown(row.limit, row.unit),
                f"{row.seconds:.1f}",
                escape(row.detail),
            )
        return table


def shown(value: float | str | None, unit: str) -> str:
    """A value as text of a few digits."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else f"{value:.4g}"
    return f"{text} {unit}".strip()
