"""ledger.jsonl: what a search has asked for and learnt, one line of JSON for each event.

Lines are only ever added, and are on the disk before anything follows from them. Events: `starting`
(a trial is about to be begun), `started` (it was; `handle` finds it again), `ended` (its outcome,
which is final), `lost` (an attempt that came to nothing; it is begun again), `failed` (it is given
up), `winner` and `exhausted` (a ladder's end). Only `ended` decides; the rest is for people and for
finding jobs again. That a trial is below frozen is no event: it follows from the outcomes.
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
    """Adds events.

    Args:
        output: folder of the search, which this process has to itself.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, output: Path) -> None:
        self._journal = Journal(output / LEDGER)

    def add(self, event: Event, arm: Arm, trial: Trial | None = None, **more: object) -> None:
        """Keeps an event; it is on the disk when this returns.

        Args:
            event: what happened.
            arm: the ladder.
            trial: of it; None for the end of a ladder without a winner.
            more: what else is known, as JSON takes it.

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
    """All events, in order; what follows the last line break was cut by a kill, and is left out.

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
            raise UserError(f"{path}:{number}: not an event of a search") from error
        events.append(entry)
    return events


def arm_of(entry: dict[str, Any]) -> Arm:
    """The ladder that an event belongs to."""
    return Arm(entry["kind"], entry["rank"], entry["seed"])


def trial_of(entry: dict[str, Any]) -> Trial:
    """The trial that an event belongs to."""
    return Trial(entry["multiple"], entry["steps"])


def ends_of(events: list[dict[str, Any]]) -> dict[Arm, Trial | None]:
    """The winners of the ladders that have ended, by the newest events; None: no trial survived."""
    ends = [e for e in events if e["event"] in ("winner", "exhausted")]
    return {arm_of(e): trial_of(e) if e["event"] == "winner" else None for e in ends}


def outcomes_of(events: list[dict[str, Any]]) -> dict[Arm, dict[Trial, Outcome]]:
    """The outcomes of all trials that have ended, by ladder."""
    found: dict[Arm, dict[Trial, Outcome]] = {}
    for entry in events:
        if entry["event"] == "ended":
            outcome = Outcome(entry["ending"], entry["score"])
            found.setdefault(arm_of(entry), {})[trial_of(entry)] = outcome
    return found
