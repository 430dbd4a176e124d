"""Refusing to train on chains that give validation chains away."""

import os
from collections.abc import Sequence

from esmfold_peft.console import report
from esmfold_peft.datasets.leaks import Leak, chain_list, find_leaks, what_was_compared
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
    leaks = [leak for store in training for leak in _leaks(store, validation)]
    compared = {what_was_compared(chain_list(store), held_out) for store in training}
    if not leaks:
        report(f"no training chain leaks a validation chain ({'; '.join(sorted(compared))})")
        return leaks
    for leak in leaks[:_NAMED]:
        report(f"leak: {leak.chain} of {leak.store}: {leak.reason}")
    if len(leaks) > _NAMED:
        report(f"leak: {len(leaks) - _NAMED:,} more chains")
    if not allow:
        raise UserError(
            f"data.train: {len(leaks):,} chains leak validation chains, {leaks[0].chain}"
            f" ({leaks[0].reason}) is the first; make the store anew with"
            f" `esmfold-peft prepare ... --held_out {validation.path}`, which leaves them out and"
            " lists them, or go on with --allow-leaks"
        )
    report(f"{len(leaks):,} training chains leak validation chains; they were allowed (leaks.csv)")
    return leaks


def _leaks(store: Store, validation: Store) -> list[Leak]:
    training = chain_list(store)
    found = find_leaks(training, chain_list(validation), threads=len(os.sched_getaffinity(0)))
    return [Leak(str(store.path), training.ids[place], reason) for place, reason in found.items()]
