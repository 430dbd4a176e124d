"""How `search status` shows a search: a tree of its ladders and trials, or JSON."""

import io
from collections import Counter
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from esmfold_peft.config import SearchConfig
from esmfold_peft.search.costs import costs_of, hours_text, short_number, time_left
from esmfold_peft.search.grid import Arm, rules_of
from esmfold_peft.search.search_record import LadderRecord, SearchRecord, State, TrialRecord

_STYLES: dict[State, str] = {
    "running": "cyan",
    "converged": "green",
    "plateau": "yellow",
    "diverged": "red",
    "below frozen": "red",
    "interrupted": "yellow",
    "failed": "bold red",
}
_LADDER_STYLES = {"winner": "green", "no survivor": "red", "not begun": "dim", "waits": "yellow"}
_NO_WIDTH = 1_000_000
"""Columns where there is no terminal: a trial is one line, so that grep finds all of it."""


def print_status(record: SearchRecord, now_running: bool | None = None) -> None:
    """Prints the tree on stdout, with colours and folded lines in a terminal only.

    `now_running` says whether a process runs the search now; None if that is not known.
    """
    console = Console(highlight=False, emoji=False)
    if console.is_terminal:
        console.print(_tree(record, now_running))
    else:
        print(status_text(record, now_running))


def status_text(record: SearchRecord, now_running: bool | None = None) -> str:
    """The tree without colours, one line for each trial."""
    console = Console(file=io.StringIO(), width=_NO_WIDTH, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(_tree(record, now_running))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def status_json(record: SearchRecord, now_running: bool | None = None) -> dict[str, Any]:
    """The same facts in plain values: times in seconds, null for what is not known."""
    costs, left = costs_of(record), time_left(record)
    return {
        "output": str(record.config.output),
        "now_running": now_running,
        "finished": _finished(record),
        "ladders": [_ladder_json(ladder, record.config) for ladder in record.ladders],
        "dropped": [_arm_json(t.arm) | _trial_json(t, record.config) for t in record.dropped],
        "trials": _states(record),
        "gpu_seconds": costs.spent,
        "gpu_seconds_saved_by_divergence": costs.saved_by_divergence,
        "gpu_seconds_saved_by_halving": costs.saved_by_halving,
        "seconds_left_at_least": None if left is None else left.least,
        "seconds_left_at_most": None if left is None else left.most,
        "concurrent": record.config.executor.concurrent,
    }


def time_text(seconds: float) -> str:
    """A length of time in the unit that suits it."""
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:  # below two of a unit the smaller one says more
            return f"{short_number(seconds / length)} {unit}"
    return "less than 2 minutes" if seconds else "nothing"


def _tree(record: SearchRecord, now_running: bool | None) -> Tree:
    tree = Tree(Text(str(record.config.output), style="bold"))
    for ladder in record.ladders:
        state = _state(ladder)
        branch = Text(f"{ladder.arm.called()} — ")
        branch.append(_standing(ladder, state, record.config), _LADDER_STYLES.get(state, "cyan"))
        leaves = tree.add(branch)
        for trial in ladder.trials:
            leaves.add(_leaf(trial, trial == ladder.winner, record.config))
    totals = tree.add(Text("total", style="bold"))
    for line in _totals(record, now_running):
        totals.add(Text(line))
    return tree


def _state(ladder: LadderRecord) -> str:
    if not ladder.is_open:
        return "no survivor" if ladder.winner is None else "winner"
    if ladder.waits:
        return "waits"
    return "climbing" if ladder.trials else "not begun"


def _standing(ladder: LadderRecord, state: str, config: SearchConfig) -> str:
    """A ladder's state with numbers."""
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
        return f"{word}, rung {ladder.rung + 1} of {len(rungs)}"
    return state


def _leaf(trial: TrialRecord, wins: bool, config: SearchConfig) -> Text:
    text = Text(f"{_alpha(trial)} " if _alpha(trial) else "")
    text.append(trial.state, _STYLES[trial.state])
    parts = [f" at step {trial.step:,} of {config.engine.steps:,}"]
    parts += [_score(trial)] if trial.score is not None else []
    parts += [f"{trial.attempts} attempts"] if trial.attempts > 1 else []
    parts += [hours_text(trial.gpu_seconds, config)]
    if trial.beaten:
        parts += ["beaten: a better one went on"]
    elif trial.trial.steps < config.engine.steps and trial.state in ("converged", "plateau"):
        parts += ["waits at the halving"]
    text.append(", ".join(parts + ["kept"] * wins))
    reason = " ".join(": ".join(part for part in (trial.rule, trial.message) if part).split())
    return text.append(f"; {reason}", "dim") if reason else text


def _totals(record: SearchRecord, now_running: bool | None) -> list[str]:
    costs, config, left = costs_of(record), record.config, time_left(record)
    trials = ", ".join(f"{n} {state}" for state, n in _states(record).items()) or "none begun"
    if record.dropped:
        trials += f"; {len(record.dropped)} of them of ladders that the grid no longer has"
    spent = f"{hours_text(costs.spent, config)} spent"
    saved = f"{hours_text(costs.saved_by_divergence, config)} saved by early divergence"
    if config.ladder.halve_at is not None:
        saved += f", {hours_text(costs.saved_by_halving, config)} by halving"
    lines = [f"trials: {trials}", f"{spent}; {saved}"]
    if _finished(record):
        return [*lines, "finished"]
    if left is None:
        lines.append("time left: not known before a trial has done a step")
    else:
        fails = "diverges or is below frozen" if record.compared else "diverges"
        lines.append(
            f"time left: {time_text(left.least)} if no trial {fails} from now on, at most"
            f" {time_text(left.most)}; {config.executor.concurrent} at a time"
        )
    if now_running is False:
        lines.append(
            "no process runs this search now; give the same `esmfold-peft search` command to"
            " resume it"
        )
    return lines


def _states(record: SearchRecord) -> dict[str, int]:
    """How many trials are in each state that has any."""
    counts = Counter(trial.state for trial in record.trials)
    return {state: counts[state] for state in _STYLES if counts[state]}


def _finished(record: SearchRecord) -> bool:
    return not any(ladder.is_open for ladder in record.ladders)


def _ladder_json(ladder: LadderRecord, config: SearchConfig) -> dict[str, Any]:
    state = _state(ladder)
    return _arm_json(ladder.arm) | {
        "state": state,
        "rung": ladder.rung + 1 if state in ("climbing", "waits") else None,
        "rungs": len(rules_of(config, ladder.arm).rungs),
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
        "score": trial.score,
        "rule": trial.rule,
        "message": trial.message,
        "attempts": trial.attempts,
        "gpu_seconds": trial.gpu_seconds,
        "beaten": trial.beaten,
    }


def _alpha(trial: TrialRecord) -> str:
    return "" if trial.alpha is None else f"α={trial.alpha:g}"


def _score(trial: TrialRecord) -> str:
    return "no score" if trial.score is None else f"lDDT-Cα {trial.score:.3f}"
