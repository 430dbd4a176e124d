"""What was found: rows, kept in a JSON file from the first one on, and a table of them."""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from rich import box
from rich.table import Table

from esmfold_peft.disk.files import write_atomically

Status = Literal["passed", "failed", "skipped"]
_COLOURS: dict[Status, str] = {"passed": "green", "failed": "bold red", "skipped": "yellow"}


@dataclass(frozen=True)
class Row:
    """One result.

    Attributes:
        name: what was checked or measured.
        status: a measurement without a limit that must hold is passed.
        value: what was found; None where nothing could be.
        limit: what the value is compared with.
        relation: how the value must stand to the limit; "goal" need not be reached.
        unit: of value and limit.
        seconds: it took, from the row before it in the same check.
        check: that gave it.
        detail: for people.
    """

    name: str
    status: Status
    value: float | str | None = None
    limit: float | None = None
    relation: Literal["<=", ">=", "goal", ""] = ""
    unit: str = ""
    seconds: float = 0.0
    detail: str = ""
    check: str = ""


def at_most(name: str, value: float, limit: float, *, unit: str = "", detail: str = "") -> Row:
    """A row that passes up to a limit; NaN fails.

    Args:
        name: of the row.
        value: found.
        limit: the largest that passes.
        unit: of both.
        detail: for people.
    """
    status: Status = "passed" if value <= limit else "failed"
    return Row(name, status, float(value), float(limit), "<=", unit, detail=detail)


def at_least(name: str, value: float, limit: float, *, unit: str = "", detail: str = "") -> Row:
    """A row that passes from a limit on; NaN fails.

    Args:
        name: of the row.
        value: found.
        limit: the smallest that passes.
        unit: of both.
        detail: for people.
    """
    status: Status = "passed" if value >= limit else "failed"
    return Row(name, status, float(value), float(limit), ">=", unit, detail=detail)


def measured(name: str, value: float | str, unit: str = "", *, detail: str = "") -> Row:
    """A row that is no verdict.

    Args:
        name: of the row.
        value: measured.
        unit: of the value.
        detail: for people.
    """
    return Row(name, "passed", value, unit=unit, detail=detail)


def against_goal(name: str, value: float, goal: float, unit: str, *, detail: str = "") -> Row:
    """A measurement beside what it should be; the check does not fail by it.

    Args:
        name: of the row.
        value: measured.
        goal: the value to reach, or less.
        unit: of both.
        detail: for people.
    """
    verdict = "reached" if value <= goal else f"missed {value / goal:.2f}-fold"
    detail = f"goal of {goal:g} {unit} {verdict}" + (f"; {detail}" if detail else "")
    return Row(name, "passed", value, goal, "goal", unit, detail=detail)


def skipped(name: str, reason: str) -> Row:
    """A row of what could not be checked here.

    Args:
        name: of the row.
        reason: for people.
    """
    return Row(name, "skipped", detail=reason)


def failed(name: str, reason: str) -> Row:
    """A row of a check that broke off.

    Args:
        name: of the row.
        reason: for people.
    """
    return Row(name, "failed", detail=reason)


@dataclass(eq=False)
class Report:
    """The rows so far, which are in the file as soon as they are added.

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
        """Takes over the rows of an earlier call, but for those of checks that had not ended.

        Args:
            file: the report of that call.
            alike: what its header must say too.

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
        self.rows.append(_rounded(row))
        self.write()

    def write(self) -> None:
        """Writes all that is known; a reader never sees half of it."""
        counts = {status: sum(row.status == status for row in self.rows) for status in _COLOURS}
        content = {**self.header, "counts": counts, "ended": self.ended}
        content["rows"] = [asdict(row) for row in self.rows]
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(self.path, text + "\n")

    @property
    def failures(self) -> list[Row]:
        """The rows that failed."""
        return [row for row in self.rows if row.status == "failed"]

    def table(self) -> Table:
        """All rows for people."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("check", "status", "value", "", "limit", "s", "detail"):
            right = column in ("value", "limit", "s")
            table.add_column(column, justify="right" if right else "left", overflow="fold")
        for row in self.rows:
            table.add_row(
                row.name,
                f"[{_COLOURS[row.status]}]{row.status}[/]",
                shown(row.value, row.unit),
                row.relation,
                shown(row.limit, row.unit),
                f"{row.seconds:.1f}",
                row.detail.replace("[", "\\["),
            )
        return table


def shown(value: float | str | None, unit: str) -> str:
    """A value as text of a few digits."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else f"{value:.4g}"
    return f"{text} {unit}".strip()


def _rounded(row: Row) -> Row:
    """The row as JSON can say it: it has no NaN and no infinity."""
    value = row.value
    if isinstance(value, float) and not math.isfinite(value):
        value = str(value)
    return replace(row, value=value, seconds=round(row.seconds, 2))
