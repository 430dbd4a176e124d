"""The search itself: asks the ladders, keeps the executor busy, and records the outcomes."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esmfold_peft.config import SearchConfig
from esmfold_peft.config.parsing import config_text
from esmfold_peft.disk.files import make_folder, write_atomically
from esmfold_peft.search.attempt import SETTINGS, attempts
from esmfold_peft.search.executors import Executor
from esmfold_peft.search.grid import (
    Arm,
    arms_of,
    baseline_of,
    in_turn,
    rules_of,
    trial_config,
    trial_folder,
)
from esmfold_peft.search.ladder import Outcome, Outcomes, Trial, decide, judged
from esmfold_peft.search.ledger import Ledger, arm_of, outcomes_of, read_ledger, trial_of
from esmfold_peft.search.trial_files import below_text, endings_text, read_end, why_lost
from esmfold_peft.training.leak_guard import LEAK_CHECK

Key = tuple[Arm, Trial]


@dataclass
class Summary:
    """How a search has ended.

    Attributes:
        winners: by arm.
        exhausted: arms without a surviving trial.
        waiting: arms that wait for the frozen trial of their seed, which has not ended.
        failed: trials that were given up, each with the reason.
    """

    winners: dict[Arm, Trial] = field(default_factory=dict)
    exhausted: list[Arm] = field(default_factory=list)
    waiting: list[Arm] = field(default_factory=list)
    failed: dict[Key, str] = field(default_factory=dict)


class Driver:
    """Runs a search until no ladder asks for anything more.

    Args:
        config: of the search, all paths absolute; this process has locked its folder.
        executor: what runs the trials.
        report: called with each line for people.
    """

    def __init__(
        self, config: SearchConfig, executor: Executor, report: Callable[[str], None]
    ) -> None:
        self.config = config
        self.summary = Summary()
        self._executor = executor
        self._ledger = Ledger(config.output)
        self._report = report
        events = read_ledger(config.output)
        self._outcomes: dict[Arm, dict[Trial, Outcome]] = outcomes_of(events)
        self._announced: dict[Arm, Trial | None] = {
            arm_of(e): trial_of(e) if e["event"] == "winner" else None
            for e in events
            if e["event"] in ("winner", "exhausted")
        }
        self._known_below = self._below_frozen()
        self._running: list[Key] = []
        self._attempts: dict[Key, int] = {}  # of this process
        self._earlier: dict[Key, int] = {}  # before the newest of them
        self._adopt(events)

    def run(self) -> Summary:
        """Runs until all ladders have ended, or can only wait for a failed trial."""
        while self.advance():
            time.sleep(self.config.executor.poll_seconds)
        return self.summary

    def advance(self) -> bool:
        """Checks the running trials, records the ends, and starts what the ladders ask for.

        Returns:
            Whether there is anything left to wait for.
        """
        for key in list(self._running):
            if not self._executor.alive(self._folder(key)):
                self._running.remove(key)
                self._take_in(key)
        asked = list(self._asked())
        waiting = [key for key in asked if not self._is_busy(key)]
        free = max(0, self.config.executor.concurrent - len(self._running))
        self._begin(waiting[:free])
        # The search does not wait for trials of a ladder that the grid no longer has.
        return len(waiting) > free or any(map(self._is_busy, asked))

    def _tell(self, key: Key, text: str) -> None:
        self._report(f"{key[0].called(key[1])}: {text}")

    def _folder(self, key: Key) -> Path:
        return trial_folder(self.config.output, *key)

    def _is_busy(self, key: Key) -> bool:
        """Whether a trial runs, or its other part at the halving, which has the same folder."""
        return any((arm, t.multiple) == (key[0], key[1].multiple) for arm, t in self._running)

    def _asked(self) -> Iterator[Key]:
        """What all ladders ask for, in order, except failed trials; writes down ladders' ends."""
        self.summary.waiting = []
        for arm in in_turn(arms_of(self.config)):
            while True:
                decision = decide(rules_of(self.config, arm), *self._known(arm))
                keys = [(arm, trial) for trial in decision.asked]
                # A search that was killed between a trial's end and the ledger finds it here.
                if not any(self._keep_end(key) for key in keys if key not in self._running):
                    break
            if decision.waits:
                self.summary.waiting.append(arm)
            elif decision.winner is not None or decision.exhausted:
                self._end(arm, decision.winner)
            yield from (key for key in keys if key not in self.summary.failed)

    def _known(self, arm: Arm) -> tuple[Outcomes, Outcomes | None]:
        """Outcomes of a ladder, and of the frozen one that it must beat."""
        frozen = baseline_of(self.config, arm)
        beside = None if frozen is None else self._outcomes.get(frozen, {})
        return self._outcomes.get(arm, {}), beside

    def _below_frozen(self) -> dict[Key, Outcome]:
        return {
            (arm, trial): outcome
            for arm in arms_of(self.config)
            for trial, outcome in judged(*self._known(arm)).items()
            if outcome.ending == "below frozen"
        }

    def _take_in(self, key: Key) -> None:
        """Records the outcome of a trial whose process is gone, or why it has none."""
        if self._keep_end(key):
            return
        lost = why_lost(self._folder(key), self._earlier.get(key, 0))
        own = self._attempts[key]
        if lost.busy:
            self._attempts[key] = max(0, own - 1)
        # A trial that an earlier search has started is started once with the settings of this one.
        given_up = bool(own) and (
            lost.hopeless or (own > self.config.executor.retries and not lost.busy)
        )
        self._ledger.add("failed" if given_up else "lost", *key, message=lost.reason)
        self._tell(key, lost.reason + ("; given up" if given_up else ""))
        if given_up:
            self.summary.failed[key] = lost.reason

    def _keep_end(self, key: Key) -> bool:
        """Writes down the outcome of a trial that has ended; False if it has not."""
        end = read_end(self._folder(key), key[1], self.config.ladder)
        if end is None:
            return False
        outcome, status = end
        self._outcomes.setdefault(key[0], {})[key[1]] = outcome
        self._ledger.add(
            "ended",
            *key,
            ending=outcome.ending,
            score=outcome.score,
            step=status.step,
            rule=status.rule,
            message=status.message,
        )
        self._tell(
            key,
            f"{outcome.ending} at step {status.step:,}"
            + (f" by rule {status.rule}" if status.rule else "")
            + (f", lDDT-Cα {outcome.score:.3f}" if outcome.score is not None else ""),
        )
        # The ledger has no event for this verdict: it is reported when it first appears.
        below = self._below_frozen()
        for other, verdict in below.items():
            if other not in self._known_below:
                self._tell(other, f"below frozen; {below_text(verdict)}")
        self._known_below = below
        return True

    def _begin(self, keys: list[Key]) -> None:
        """Starts trials; writes their settings first, and the result of the leak check."""
        leaks = self.config.output / LEAK_CHECK
        for key in keys:
            folder = self._folder(key)
            make_folder(folder)
            settings = trial_config(self.config, *key)
            write_atomically(folder / SETTINGS, config_text(settings))
            if leaks.is_file():
                write_atomically(folder / LEAK_CHECK, leaks.read_bytes())
            self._attempts[key] = self._attempts.get(key, 0) + 1
            self._earlier[key] = len(attempts(folder))
            self._ledger.add("starting", *key, attempt=self._attempts[key])
        handles = self._executor.start([self._folder(key) for key in keys]) if keys else []
        for key, handle in zip(keys, handles, strict=True):
            self._running.append(key)
            self._ledger.add("started", *key, handle=handle)
            self._tell(key, f"started, {key[1].steps:,} steps")

    def _adopt(self, events: list[dict[str, Any]]) -> None:
        """Takes over the trials that an earlier process has started and that may still run."""
        last: dict[Key, dict[str, Any]] = {}
        for entry in events:
            if "multiple" in entry and entry["event"] != "winner":
                last[arm_of(entry), trial_of(entry)] = entry
        # Also of ladders that the grid no longer has: they take a place, and GPUs.
        for key, entry in last.items():
            if entry["event"] not in ("starting", "started"):
                continue
            self._executor.adopt(self._folder(key), entry.get("handle", {}))
            if self._executor.alive(self._folder(key)):
                self._tell(key, "still runs")
            self._running.append(key)
            self._attempts[key] = 0  # only those of this process count

    def _end(self, arm: Arm, winner: Trial | None) -> None:
        """Writes down the end of a ladder, unless it was the same before."""
        if winner is not None:
            self.summary.winners[arm] = winner
        elif arm not in self.summary.exhausted:
            self.summary.exhausted.append(arm)
        # A frozen model that joins or leaves the grid may change the end.
        if arm in self._announced and self._announced[arm] == winner:
            return
        self._announced[arm] = winner
        if winner is None:
            self._ledger.add("exhausted", arm)
            endings = [o.ending for o in judged(*self._known(arm)).values() if o.out]
            self._report(f"{arm.called()}: no survivor ({endings_text(endings)} down to the floor)")
        else:
            self._ledger.add("winner", arm, winner, score=self._outcomes[arm][winner].score)
            self._tell((arm, winner), "kept")
