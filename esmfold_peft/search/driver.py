"""The search itself: asks the ladders, keeps the executor busy, and writes down what came of it."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from esmfold_peft.config import SearchConfig
from esmfold_peft.config.parsing import config_text
from esmfold_peft.disk.files import make_folder, write_atomically
from esmfold_peft.search.attempt import SETTINGS, attempts
from esmfold_peft.search.executors.protocol import Executor, Job
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
from esmfold_peft.search.ledger import Ledger, arm_of, ends_of, outcomes_of, trial_of
from esmfold_peft.search.outcomes import Ended, below_text, endings_text, read_end, why_lost
from esmfold_peft.training.leak_guard import LEAK_CHECK

Key = tuple[Arm, Trial]


@dataclass
class Summary:
    """How a search has ended.

    Attributes:
        winners: by ladder.
        exhausted: ladders of which no trial has survived.
        waiting: ladders that the frozen trial of their seed decides on, which has not ended.
        failed: trials that were given up, each with the reason.
    """

    winners: dict[Arm, Trial] = field(default_factory=dict)
    exhausted: list[Arm] = field(default_factory=list)
    waiting: list[Arm] = field(default_factory=list)
    failed: dict[Key, str] = field(default_factory=dict)


class Driver:
    """Runs a search until no ladder asks for anything more.

    Args:
        config: of the search, all paths absolute.
        executor: what runs the trials.
        ledger: what is added to.
        events: what the ledger held before.
        say: called with a line for people.
    """

    def __init__(
        self,
        config: SearchConfig,
        executor: Executor,
        ledger: Ledger,
        events: list[dict[str, Any]],
        *,
        devices: int,
        say: Callable[[str], None],
    ) -> None:
        self.config = config
        self.summary = Summary()
        self._executor = executor
        self._ledger = ledger
        self._devices = devices
        self._say = say
        self._outcomes: dict[Arm, dict[Trial, Outcome]] = outcomes_of(events)
        self._announced: dict[Arm, Trial | None] = ends_of(events)
        self._told = self._below_frozen()
        self._running: dict[Key, Job] = {}
        self._attempts: dict[Key, int] = {}  # of this process
        self._earlier: dict[Key, int] = {}  # before the newest of them
        self._adopt(events)

    def run(self) -> Summary:
        """Goes on until all ladders have ended, or what is left of them has failed."""
        while self.advance():
            time.sleep(self.config.executor.poll_seconds)
        return self.summary

    def advance(self) -> bool:
        """Looks at what runs, writes down what has ended, and begins what is asked for.

        Returns:
            Whether there is anything left to wait for.
        """
        for key in list(self._running):
            if not self._executor.alive(self._running[key]):
                del self._running[key]
                self._take_in(key)
        asked = list(self._asked())
        waiting = [key for key in asked if not self._is_busy(key)]
        free = max(0, self.config.executor.concurrent - len(self._running))
        self._begin(waiting[:free])
        # What runs of a ladder that the grid no longer has is not waited for.
        return len(waiting) > free or any(map(self._is_busy, asked))

    def _is_busy(self, key: Key) -> bool:
        """Whether a trial runs, or the other part of it at halving, which has the same folder."""
        return any((arm, t.multiple) == (key[0], key[1].multiple) for arm, t in self._running)

    def _asked(self) -> Iterator[Key]:
        """What all ladders ask for, in order, without what was given up; writes down their ends."""
        self.summary.waiting = []
        for arm in in_turn(arms_of(self.config)):
            while True:
                decision = decide(rules_of(self.config, arm), *self._known(arm))
                # Killed between a trial's end and the ledger, a search finds the outcome here.
                known = [t for t in decision.asked if self._look(arm, t)]
                if not known:
                    break
            if decision.waits:
                self.summary.waiting.append(arm)
            elif decision.winner is not None or decision.exhausted:
                self._end(arm, decision.winner)
            yield from ((arm, t) for t in decision.asked if (arm, t) not in self.summary.failed)

    def _known(self, arm: Arm) -> tuple[Outcomes, Outcomes | None]:
        """Outcomes of a ladder, and of the frozen one that it is to beat."""
        frozen = baseline_of(self.config, arm)
        beside = None if frozen is None else self._outcomes.get(frozen, {})
        return self._outcomes.get(arm, {}), beside

    def _below_frozen(self) -> dict[Key, Outcome]:
        known = ((arm, judged(*self._known(arm))) for arm in arms_of(self.config))
        return {
            (arm, trial): outcome
            for arm, outcomes in known
            for trial, outcome in outcomes.items()
            if outcome.ending == "below frozen"
        }

    def _tell_below_frozen(self) -> None:
        """Says a line for each new trial below the frozen one; the ledger keeps no verdicts."""
        below = self._below_frozen()
        for key, outcome in below.items():
            if key not in self._told:
                self._say(f"{_called(*key)}: below frozen; {below_text(outcome)}")
        self._told = below

    def _look(self, arm: Arm, trial: Trial) -> bool:
        """Whether a trial that nobody runs has ended all the same."""
        if (arm, trial) in self._running:
            return False
        return self._keep(arm, trial, self._ended(arm, trial))

    def _take_in(self, key: Key) -> None:
        """Writes down what came of a trial whose process is gone."""
        if self._keep(*key, self._ended(*key)):
            return
        lost = why_lost(trial_folder(self.config.output, *key), self._earlier.get(key, 0))
        own = self._attempts[key]
        if lost.busy:
            self._attempts[key] = max(0, own - 1)
        # One that an earlier search has begun is begun once with the settings of this one.
        given_up = bool(own) and (
            lost.hopeless or (own > self.config.executor.retries and not lost.busy)
        )
        self._ledger.add("failed" if given_up else "lost", *key, message=lost.reason)
        self._say(f"{_called(*key)}: {lost.reason}" + ("; given up" if given_up else ""))
        if given_up:
            self.summary.failed[key] = lost.reason

    def _ended(self, arm: Arm, trial: Trial) -> Ended | None:
        return read_end(trial_folder(self.config.output, arm, trial), trial, self.config.ladder)

    def _keep(self, arm: Arm, trial: Trial, ended: Ended | None) -> bool:
        """Writes an outcome down; False where there is none."""
        if ended is None:
            return False
        self._outcomes.setdefault(arm, {})[trial] = ended.outcome
        self._ledger.add(
            "ended",
            arm,
            trial,
            ending=ended.outcome.ending,
            score=ended.outcome.score,
            step=ended.status.step,
            rule=ended.status.rule,
            message=ended.status.message,
        )
        score = ended.outcome.score
        self._say(
            f"{_called(arm, trial)}: {ended.outcome.ending} at step {ended.status.step:,}"
            + (f" by rule {ended.status.rule}" if ended.status.rule else "")
            + (f", lDDT-Cα {score:.3f}" if score is not None else "")
        )
        self._tell_below_frozen()
        return True

    def _begin(self, keys: list[Key]) -> None:
        jobs = {key: self._prepare(*key) for key in keys}
        for key in keys:
            self._attempts[key] = self._attempts.get(key, 0) + 1
            self._earlier[key] = len(attempts(jobs[key].folder))
            self._ledger.add("starting", *key, attempt=self._attempts[key])
        handles = self._executor.start(list(jobs.values())) if jobs else []
        for key, handle in zip(keys, handles, strict=True):
            self._running[key] = jobs[key]
            self._ledger.add("started", *key, handle=handle)
            self._say(f"{_called(*key)}: begun, {key[1].steps:,} steps")

    def _prepare(self, arm: Arm, trial: Trial) -> Job:
        """Writes the settings of a trial, and what is known of leaks among its chains."""
        job = self._job(arm, trial)
        make_folder(job.folder)
        settings = trial_config(self.config, arm, trial)
        write_atomically(job.folder / SETTINGS, config_text(settings))
        known = self.config.output / LEAK_CHECK
        if known.is_file():
            write_atomically(job.folder / LEAK_CHECK, known.read_bytes())
        return job

    def _job(self, arm: Arm, trial: Trial) -> Job:
        folder = trial_folder(self.config.output, arm, trial)
        return Job(f"{arm.name}/{folder.name}", folder, self._devices)

    def _adopt(self, events: list[dict[str, Any]]) -> None:
        """Takes over the trials that an earlier process has begun, and that may run on."""
        last: dict[Key, dict[str, Any]] = {}
        for entry in events:
            if "multiple" in entry and entry["event"] != "winner":
                last[arm_of(entry), trial_of(entry)] = entry
        # Also of ladders that the grid no longer has: they take a place, and GPUs.
        for key, entry in last.items():
            if entry["event"] not in ("starting", "started"):
                continue
            job = self._job(*key)
            self._executor.adopt(job, entry.get("handle", {}))
            if self._executor.alive(job):
                self._say(f"{_called(*key)}: still runs")
            self._running[key] = job
            self._attempts[key] = 0  # those of this process count

    def _end(self, arm: Arm, winner: Trial | None) -> None:
        if winner is None:
            if arm not in self.summary.exhausted:
                self.summary.exhausted.append(arm)
        else:
            self.summary.winners[arm] = winner
        # A grid that has grown or shrunk by the frozen model may have changed the end.
        if arm in self._announced and self._announced[arm] == winner:
            return
        self._announced[arm] = winner
        if winner is None:
            self._ledger.add("exhausted", arm)
            endings = [o.ending for o in judged(*self._known(arm)).values() if o.out]
            self._say(f"{_called(arm)}: no survivor ({endings_text(endings)} down to the floor)")
        else:
            score = self._outcomes[arm][winner].score
            self._ledger.add("winner", arm, winner, score=score)
            self._say(f"{_called(arm, winner)}: kept")


def _called(arm: Arm, trial: Trial | None = None) -> str:
    """How people read of a ladder or a trial."""
    alpha = None if trial is None else arm.alpha(trial)
    return f"{arm.label}, seed {arm.seed}" + ("" if alpha is None else f", α={alpha:g}")
