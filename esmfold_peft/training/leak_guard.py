"""Refusing to train on chains that give validation chains away."""

import os
from collections.abc import Sequence

from esmfold_peft.console import report
from esmfold_peft.datasets.leaks import (
    ChainList,
    Leak,
    chain_list,
    find_leaks,
    what_was_compared,
)
from esmfold_peft.datasets.store import Store
from esmfold_peft.errors import UserError

_NAMED = 20  # leaks that are printed one by one


def guard(training: Sequence[Store], validation: Store, *, allow: bool) -> list[Leak]:
    """Looks for training chains that leak, and says what it found.

    Args:
        training: every store that is trained on.
        validation: the store that is validated on.
        allow: go on all the same.

    Returns:
        The leaks; none unless they are allowed.

    Raises:
        UserError: there are leaks that are not allowed.
    """
    held_out = chain_list(validation)
    lists = [chain_list(store) for store in training]
    report("looking for training chains that leak validation chains")
    found = [_leaks(store, chains, held_out) for store, chains in zip(training, lists, strict=True)]
    leaks = [leak for those in found for leak in those]
    compared = what_was_compared(*lists, held_out)
    if not leaks:
        report(f"no training chain leaks a validation chain ({compared})")
        return leaks
    report(f"training chains leak validation chains ({compared})")
    for leak in leaks[:_NAMED]:
        report(f"leak: {leak.chain} of {leak.store}: {leak.reason}")
    if len(leaks) > _NAMED:
        report(f"leak: {len(leaks) - _NAMED:,} more chains")
    if not allow:
        setting = "data.train" if found[0] else "data.mix"
        raise UserError(
            f"{setting}: {_counted(leaks)}, {leaks[0].chain} of {leaks[0].store}"
            f" ({leaks[0].reason}) is the first; make the store anew with"
            f" `esmfold-peft prepare ... --held_out {validation.path}`, which leaves such chains"
            " out and lists them, or go on with --allow-leaks"
        )
    report(f"{_counted(leaks)}; that was allowed (leaks.csv)")
    return leaks


def _leaks(store: Store, training: ChainList, validation: ChainList) -> list[Leak]:
    found = find_leaks(training, validation, threads=len(os.sched_getaffinity(0)))
    return [Leak(str(store.path), training.ids[place], reason) for place, reason in found.items()]


def _counted(leaks: list[Leak]) -> str:
    chains = "1 chain leaks" if len(leaks) == 1 else f"{len(leaks):,} chains leak"
    return f"{chains} validation chains"
