"""ledger.jsonl: the events of a search, one line of JSON each.

Lines are only ever added, and are on the disk before the search acts on them. Events: `starting` (a
trial is about to start), `started` (it has; `handle` finds it again), `ended` (its outcome, which
is final), `lost` (an attempt without an outcome; it is started again), `failed` (it is given up),
`winner` and `exhausted` (a ladder's end). Only `ended` decides. The others are for people and for
finding jobs again. There is no event for "below frozen": that follows from the outcomes.
"""

import json
import time
from pathlib import Path
from typing import Any, Literal

from esmfold_peft.disk.journal import Journal, whole_lines
from esmfold_peft.errors import UserError
from esmfold_peft.search.grid import Arm
from esmfold_peft.search.ladder import Outcome, Trial

LEDGER = "ledger.jsonl"

Event = Literal["starting", "started", "ended", "lost", "failed", "winner", "exhausted"]


class Ledger:
    """Adds events to the ledger of a search's folder, which this process must have locked."""

    def __init__(self, output: Path) -> None:
        self._journal = Journal(output / LEDGER)

    def add(self, event: Event, arm: Arm, trial: Trial | None = None, **more: object) -> None:
        """Writes an event, with whatever more is known; it is on the disk when this returns.

        Raises:
            UserError: the disk is full, or gone.
        """
        entry: dict[str, object] = {
            "time": round(time.time(), 3),
            "event": event,
            **{"kind": arm.kind, "rank": arm.rank, "seed": arm.seed},
        }
        if trial is not None:
            entry |= {"alpha": arm.alpha(trial), "multiple": trial.multiple, "steps": trial.steps}
        self._journal.add(entry | more)


def read_ledger(output: Path) -> list[dict[str, Any]]:
    """All events, in order, without the rest of a line that a kill has cut.

    Raises:
        UserError: a line is damaged.
    """
    path = output / LEDGER
    events = []
    for number, line in enumerate(whole_lines(path), 1):
        try:
            entry = json.loads(line)
            _ = entry["event"], arm_of(entry)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}:{number}: not an event of a search; remove the line"
            ) from error
        events.append(entry)
    return events


def arm_of(entry: dict[str, Any]) -> Arm:
    """The arm of an event."""
    return Arm(entry["kind"], entry["rank"], entry["seed"])


def trial_of(entry: dict[str, Any]) -> Trial:
    """The trial of an event."""
    return Trial(entry["multiple"], entry["steps"])


def outcomes_of(events: list[dict[str, Any]]) -> dict[Arm, dict[Trial, Outcome]]:
    """The outcomes of all trials that have ended, by arm."""
    found: dict[Arm, dict[Trial, Outcome]] = {}
    for entry in events:
        if entry["event"] == "ended":
            outcome = Outcome(entry["ending"], entry["score"])
            found.setdefault(arm_of(entry), {})[trial_of(entry)] = outcome
    return found
