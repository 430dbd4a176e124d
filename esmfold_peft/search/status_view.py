"""How a search is shown by `search status`: a tree of its ladders and trials, or JSON."""

import io
import math
from collections import Counter
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from esmfold_peft.config import SearchConfig
from esmfold_peft.search.costs import costs_of, hours_text, short_number, time_left
from esmfold_peft.search.grid import Arm, rules_of
from esmfold_peft.search.ladder import OUT
from esmfold_peft.search.records import LadderRecord, SearchRecord, State, TrialRecord

_STYLES: dict[State, str] = {
    "running": "cyan",
    "converged": "green",
    "plateau": "yellow",
    "diverged": "red",
    "below frozen": "red",
    "interrupted": "yellow",
    "failed": "bold red",
}
_ALIVE = ("converged", "plateau")
_NO_WIDTH = 1_000_000
"""Columns where there is no terminal: a trial is one line, so that grep finds all of it."""


def print_status(record: SearchRecord, now_running: bool | None = None) -> None:
    """Prints the tree on stdout, with colours and folded lines in a terminal only.

    Args:
        record: the search.
        now_running: whether a process drives the search now; None if that is not known.
    """
    console = Console(highlight=False, emoji=False)
    if console.is_terminal:
        console.print(status_tree(record, now_running))
    else:
        print(status_text(record, now_running))


def status_text(record: SearchRecord, now_running: bool | None = None) -> str:
    """The tree without colours, one line for each trial, however long.

    Args:
        record: the search.
        now_running: whether a process drives the search now; None if that is not known.
    """
    console = Console(file=io.StringIO(), width=_NO_WIDTH, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(status_tree(record, now_running))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def status_tree(record: SearchRecord, now_running: bool | None = None) -> Tree:
    """A branch for each ladder, a leaf for each trial, and the totals.

    Args:
        record: the search.
        now_running: whether a process drives the search now; None if that is not known.
    """
    tree = Tree(Text(str(record.output), style="bold"))
    for ladder in record.ladders:
        branch = tree.add(_branch(ladder, record.config))
        for trial in ladder.trials:
            branch.add(_leaf(trial, trial == ladder.winner, record.config))
    totals = tree.add(Text("in all", style="bold"))
    for line in _totals(record, now_running):
        totals.add(Text(line))
    return tree


def status_json(record: SearchRecord, now_running: bool | None = None) -> dict[str, Any]:
    """The same facts in plain values: times in seconds, what is not known is null.

    Args:
        record: the search.
        now_running: whether a process drives the search now; None if that is not known.
    """
    costs, left = costs_of(record), time_left(record)
    return {
        "output": str(record.output),
        "now_running": now_running,
        "finished": _finished(record),
        "ladders": [_ladder_json(ladder, record.config) for ladder in record.ladders],
        "dropped": [_arm_json(t.arm) | _trial_json(t, record.config) for t in record.dropped],
        "trials": dict(_states(record)),
        "gpu_seconds": costs.spent,
        "gpu_seconds_saved_by_divergence": costs.saved_by_divergence,
        "gpu_seconds_saved_by_halving": costs.saved_by_halving,
        "seconds_left_at_least": None if left is None else left.least,
        "seconds_left_at_most": None if left is None else left.most,
        "concurrent": record.config.executor.concurrent,
    }


def time_text(seconds: float) -> str:
    """A length of time in the unit that suits it.

    Args:
        seconds: of it.
    """
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        # Up to two of a unit the smaller one says more.
        if seconds >= 2 * length:
            return f"{short_number(seconds / length)} {unit}"
    return "less than 2 minutes" if seconds else "nothing"


def _branch(ladder: LadderRecord, config: SearchConfig) -> Text:
    style = {"winner": "green", "no survivor": "red", "not begun": "dim", "waits": "yellow"}
    state = _state(ladder)
    text = Text(f"{ladder.arm.label}, seed {ladder.arm.seed} — ")
    return text.append(_standing(ladder, state, config), style.get(state, "cyan"))


def _state(ladder: LadderRecord) -> str:
    """What a ladder has come to."""
    if ladder.winner is not None:
        return "winner"
    if ladder.exhausted:
        return "no survivor"
    if ladder.waits:
        return "waits"
    return "climbing" if ladder.trials else "not begun"


def _standing(ladder: LadderRecord, state: str, config: SearchConfig) -> str:
    """The same with numbers."""
    rungs = rules_of(config, ladder.arm).rungs
    if ladder.winner is not None:
        word = f"winner {_alpha(ladder.winner)}" if ladder.arm.has_alpha else "trained"
        plateau = ", on a plateau" if ladder.winner.state == "plateau" else ""
        return f"{word} ({_score(ladder.winner)}{plateau})"
    if not ladder.arm.has_alpha:
        return {"no survivor": "diverged", "climbing": "training"}.get(state, state)
    if state == "no survivor":
        return f"no survivor down to α/r {min(rungs[-1]):g}"
    if state in ("climbing", "waits"):
        word = f"{state} for the frozen trial" if ladder.waits else state
        return f"{word}, rung {_rung(ladder, config) + 1} of {len(rungs)}"
    return state


def _rung(ladder: LadderRecord, config: SearchConfig) -> int:
    """Index of the first rung of which not all trials are out."""
    out = {t.trial.multiple for t in ladder.trials if t.state in OUT}
    rungs = rules_of(config, ladder.arm).rungs
    return next((i for i, rung in enumerate(rungs) if not out.issuperset(rung)), len(rungs) - 1)


def _leaf(trial: TrialRecord, wins: bool, config: SearchConfig) -> Text:
    text = Text(f"{_alpha(trial)} " if _alpha(trial) else "")
    text.append(trial.state, _STYLES[trial.state])
    parts = [f" at step {trial.step:,} of {config.engine.steps:,}"]
    parts += [_score(trial)] if _known(trial.score) is not None else []
    parts += [f"{trial.attempts} attempts"] if trial.attempts > 1 else []
    parts += [hours_text(trial.gpu_seconds, config)]
    parts += _at_halving(trial, config) + ["kept"] * wins
    text.append(", ".join(parts))
    reason = " ".join(": ".join(part for part in (trial.rule, trial.message) if part).split())
    return text.append(f"; {reason}", "dim") if reason else text


def _at_halving(trial: TrialRecord, config: SearchConfig) -> list[str]:
    """What has become of a trial that has ended only its part before halving."""
    if trial.beaten:
        return ["beaten: a better one went on"]
    ended_part = trial.trial.steps < config.engine.steps and trial.state in _ALIVE
    return ["waits at the halving"] if ended_part else []


def _totals(record: SearchRecord, now_running: bool | None = None) -> list[str]:
    costs, config = costs_of(record), record.config
    states = _states(record)
    trials = ", ".join(f"{count} {state}" for state, count in states.items()) or "none begun"
    spent = f"{hours_text(costs.spent, config)} spent"
    saved = f"{hours_text(costs.saved_by_divergence, config)} saved by early divergence"
    if config.ladder.halve_at is not None:
        saved += f", {hours_text(costs.saved_by_halving, config)} by halving"
    lines = [f"trials: {trials}", f"{spent}; {saved}", _left_text(record)]
    if record.dropped:
        lines[0] += f"; {len(record.dropped)} of them of ladders that the grid no longer has"
    if now_running is False and not _finished(record):
        lines.append("no process drives this search now; `esmfold-peft search` goes on with it")
    return lines


def _left_text(record: SearchRecord) -> str:
    if _finished(record):
        return "finished"
    left = time_left(record)
    if left is None:
        return "time left: not known before a trial has done a step"
    at_once = record.config.executor.concurrent
    fails = "diverges or is below frozen" if record.compared else "diverges"
    return (
        f"time left: {time_text(left.least)} if no trial {fails} from now on,"
        f" at most {time_text(left.most)}; {at_once} at a time"
    )


def _states(record: SearchRecord) -> dict[State, int]:
    """How many trials are in each state; states without one are left out."""
    counts = Counter(trial.state for trial in record.trials)
    return {state: counts[state] for state in _STYLES if counts[state]}


def _finished(record: SearchRecord) -> bool:
    return all(_state(ladder) in ("winner", "no survivor") for ladder in record.ladders)


def _ladder_json(ladder: LadderRecord, config: SearchConfig) -> dict[str, Any]:
    rungs = rules_of(config, ladder.arm).rungs
    return _arm_json(ladder.arm) | {
        "state": _state(ladder),
        "rung": _rung(ladder, config) + 1 if _state(ladder) in ("climbing", "waits") else None,
        "rungs": len(rungs),
        "winner": None if ladder.winner is None else str(ladder.winner.folder),
        "trials": [_trial_json(trial, config) for trial in ladder.trials],
    }


def _arm_json(arm: Arm) -> dict[str, Any]:
    return {"name": arm.name, "kind": arm.kind, "rank": arm.rank, "seed": arm.seed}


def _trial_json(trial: TrialRecord, config: SearchConfig) -> dict[str, Any]:
    return {
        "alpha": trial.alpha,
        "multiple": trial.trial.multiple if trial.alpha is not None else None,
        "folder": str(trial.folder),
        "state": trial.state,
        "step": trial.step,
        "steps": config.engine.steps,
        "score": _known(trial.score),
        "rule": trial.rule,
        "message": trial.message,
        "attempts": trial.attempts,
        "gpu_seconds": trial.gpu_seconds,
        "beaten": trial.beaten,
    }


def _known(score: float | None) -> float | None:
    return None if score is None or math.isnan(score) else score


def _alpha(trial: TrialRecord) -> str:
    return "" if trial.alpha is None else f"α={trial.alpha:g}"


def _score(trial: TrialRecord) -> str:
    score = _known(trial.score)
    return "no score" if score is None else f"lDDT-Cα {score:.3f}"
