"""Refuses to train on chains that leak validation chains."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from esmfold_peft.config.parsing import config_of
from esmfold_peft.console import report
from esmfold_peft.datasets.leaks import (
    Leak,
    chain_list,
    compares_similar,
    find_leaks,
    what_was_compared,
)
from esmfold_peft.datasets.manifest import manifest_hash
from esmfold_peft.datasets.store import Store
from esmfold_peft.disk.files import read_json
from esmfold_peft.errors import UserError

LEAK_CHECK = "leak_check.json"
"""File in the folder of a search and of each trial: the result for the same chains."""

_NAMED = 20  # leaks that are printed one by one


@dataclass(frozen=True)
class LeakCheck:
    """The result of comparing training with validation chains.

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


def check_leaks(
    training: Sequence[Store], validation: Store, known: Path | None = None
) -> LeakCheck:
    """Compares the chains of all training stores with those of the validation store.

    The file `known` of an earlier check of the same chains saves the work.
    """
    *own, held = (manifest_hash(store.path) for store in (*training, validation))
    found = None if known is None else _read(known)
    # A check without mmseqs is not enough where there is mmseqs.
    enough = found is not None and (found.mmseqs or not compares_similar())
    if found is not None and enough and (*found.training, found.validation) == (*own, held):
        return found
    report("looking for training chains that leak validation chains")
    held_out, lists = chain_list(validation), [chain_list(store) for store in training]
    threads = len(os.sched_getaffinity(0))
    leaks = [
        [[chains.ids[i], why] for i, why in find_leaks(chains, held_out, threads=threads).items()]
        for chains in lists
    ]
    compared = what_was_compared(*lists, held_out)
    return LeakCheck(tuple(own), held, compares_similar(), compared, tuple(leaks))


def refuse_leaks(
    check: LeakCheck, training: Sequence[Store], validation: Store, allow: bool
) -> list[Leak]:
    """Reports the result of a check, and returns the leaks, which must be allowed.

    Raises:
        UserError: there are leaks that are not allowed.
    """
    leaks = [
        Leak(str(store.path), chain, reason)
        for store, found in zip(training, check.leaks, strict=True)
        for chain, reason in found
    ]
    if not leaks:
        report(f"no training chain leaks a validation chain ({check.compared})")
        return leaks
    report(f"training chains leak validation chains ({check.compared})")
    for leak in leaks[:_NAMED]:
        report(f"leak: {leak.chain} of {leak.store}: {leak.reason}")
    if len(leaks) > _NAMED:
        report(f"leak: {len(leaks) - _NAMED:,} more chains")
    counted = "1 chain leaks" if len(leaks) == 1 else f"{len(leaks):,} chains leak"
    if not allow:
        setting = "data.train" if check.leaks[0] else "data.mix"
        raise UserError(
            f"{setting}: {counted} validation chains; the first is {leaks[0].chain} of"
            f" {leaks[0].store} ({leaks[0].reason}); make the store again with `esmfold-peft"
            f" prepare ... --held_out {validation.path}`, which rejects such chains and lists"
            " them, or allow them with --allow-leaks"
        )
    report(f"{counted} validation chains; that was allowed (leaks.csv)")
    return leaks


def _read(path: Path) -> LeakCheck | None:
    """An earlier check; None if it is missing or damaged."""
    if not path.is_file():
        return None
    try:
        return config_of(read_json(path), LeakCheck, path)
    except UserError as error:
        report(f"{error}; the chains are compared again")
        return None
