"""Refusing to train on chains that give validation chains away."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from esmfold_peft.config.parsing import config_of
from esmfold_peft.console import report
from esmfold_peft.datasets.leaks import (
    ChainList,
    Leak,
    chain_list,
    compares_similar,
    find_leaks,
    what_was_compared,
)
from esmfold_peft.datasets.position import manifest_hash
from esmfold_peft.datasets.store import Store
from esmfold_peft.disk.files import read_json
from esmfold_peft.errors import UserError

LEAK_CHECK = "leak_check.json"
"""File in the folder of a search and of each trial: what was found of the same chains."""

_NAMED = 20  # leaks that are printed one by one


@dataclass(frozen=True)
class LeakCheck:
    """What a comparison of training with validation chains has found.

    Attributes:
        training: SHA-256 of the manifest of each training store.
        validation: of the validation store's.
        mmseqs: whether similar sequences were compared too.
        compared: in words.
        leaks: chain and reason of every leak, by training store.
    """

    training: tuple[str, ...]
    validation: str
    mmseqs: bool
    compared: str
    leaks: tuple[list[list[str]], ...]

    def text(self) -> str:
        """The file that `check_leaks` reads again."""
        return json.dumps(asdict(self), indent=2) + "\n"


def guard(
    training: Sequence[Store], validation: Store, *, allow: bool, known: Path | None = None
) -> list[Leak]:
    """Looks for training chains that leak, and says what it found.

    Args:
        training: every store that is trained on.
        validation: the store that is validated on.
        allow: go on all the same.
        known: file of an earlier check, which is done again if it is of other chains.

    Returns:
        The leaks; none unless they are allowed.

    Raises:
        UserError: there are leaks that are not allowed.
    """
    return refuse_leaks(check_leaks(training, validation, known), training, validation, allow)


def check_leaks(
    training: Sequence[Store], validation: Store, known: Path | None = None
) -> LeakCheck:
    """Compares training with validation chains, or reads what an earlier check of them has found.

    See `guard`.
    """
    hashes = [manifest_hash(store.path) for store in (*training, validation)]
    found = None if known is None else _read(known)
    # A check without mmseqs is not enough where there is mmseqs.
    enough = found is not None and (found.mmseqs or not compares_similar())
    if found is not None and enough and [*found.training, found.validation] == hashes:
        return found
    report("looking for training chains that leak validation chains")
    held_out, lists = chain_list(validation), [chain_list(store) for store in training]
    return LeakCheck(
        training=tuple(hashes[:-1]),
        validation=hashes[-1],
        mmseqs=compares_similar(),
        compared=what_was_compared(*lists, held_out),
        leaks=tuple(_leaks(chains, held_out) for chains in lists),
    )


def refuse_leaks(
    check: LeakCheck, training: Sequence[Store], validation: Store, allow: bool
) -> list[Leak]:
    """Says what a check has found, and refuses leaks that are not allowed; see `guard`."""
    leaks = [
        Leak(str(store.path), chain, reason)
        for store, found in zip(training, check.leaks, strict=True)
        for chain, reason in found
    ]
    compared = check.compared
    if not leaks:
        report(f"no training chain leaks a validation chain ({compared})")
        return leaks
    report(f"training chains leak validation chains ({compared})")
    for leak in leaks[:_NAMED]:
        report(f"leak: {leak.chain} of {leak.store}: {leak.reason}")
    if len(leaks) > _NAMED:
        report(f"leak: {len(leaks) - _NAMED:,} more chains")
    if not allow:
        setting = "data.train" if check.leaks[0] else "data.mix"
        raise UserError(
            f"{setting}: {_counted(leaks)}, {leaks[0].chain} of {leaks[0].store}"
            f" ({leaks[0].reason}) is the first; make the store anew with"
            f" `esmfold-peft prepare ... --held_out {validation.path}`, which leaves such chains"
            " out and lists them, or go on with --allow-leaks"
        )
    report(f"{_counted(leaks)}; that was allowed (leaks.csv)")
    return leaks


def _leaks(training: ChainList, validation: ChainList) -> list[list[str]]:
    found = find_leaks(training, validation, threads=len(os.sched_getaffinity(0)))
    return [[training.ids[place], reason] for place, reason in found.items()]


def _read(path: Path) -> LeakCheck | None:
    """An earlier check; None where there is none that can be read."""
    if not path.is_file():
        return None
    try:
        return config_of(read_json(path), LeakCheck, path)
    except UserError as error:
        report(f"{error}; the chains are compared again")
        return None


def _counted(leaks: list[Leak]) -> str:
    chains = "1 chain leaks" if len(leaks) == 1 else f"{len(leaks):,} chains leak"
    return f"{chains} validation chains"
