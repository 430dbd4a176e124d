"""`esmfold-peft prepare`: structure files to a store of their protein chains."""

import hashlib
import json
import os
from contextlib import closing
from dataclasses import asdict
from functools import partial

from esmfold_peft.config import PrepareConfig
from esmfold_peft.console import report, watched
from esmfold_peft.datasets.manifest import FILE_NAME, manifest_text
from esmfold_peft.disk.csv_text import csv_text
from esmfold_peft.disk.files import write_atomically
from esmfold_peft.errors import UserError
from esmfold_peft.preparation.filters import Note, Rejected
from esmfold_peft.preparation.finishing import Finished, finish, require_inputs
from esmfold_peft.preparation.pool import OrderedPool
from esmfold_peft.preparation.reading import CRASH, Rules, failed, read_item
from esmfold_peft.preparation.report import Report, make_report, report_lines
from esmfold_peft.preparation.selection import Selection
from esmfold_peft.preparation.sources import Item, list_items, load, split_lists
from esmfold_peft.preparation.writer import StoreWriter

_RULES_OF_READING = 2
"""Raise it whenever the rules change, so that no store mixes old and new ones."""
_FILES_IN_A_UNIT = 32  # a kill loses a few of these for each process


def run(config: PrepareConfig) -> int:
    """Fills the store's file, then writes rejected.csv, notes.csv, report.json and manifest.csv.

    Returns:
        1 if the reader itself failed on a file (a bug, no memory, no end), else 0.

    Raises:
        UserError: a source, a list or another input is missing or wrong, the store was begun with
            other settings or files, the disk is full, or no chain is left.
    """
    require_inputs(config)
    structures, lists = split_lists(config.sources)
    selection = Selection(lists) if lists else None
    items = list_items(structures, selection, config.output)
    rules = Rules(config.filters, config.plddt if config.predicted else None, selection)
    workers = config.workers or len(os.sched_getaffinity(0))
    with StoreWriter(config.output, _settings(rules)) as writer:
        _read(items, rules, writer, workers)
        finished = finish(config, selection, writer, threads=workers)
        found = _write(config, finished, writer)
    if not finished.entries:
        reason = f"; {finished.rejected[0].reason}" if finished.rejected else ""
        raise UserError(f"{config.sources[0]}: no usable chain in {len(items)} files{reason}")
    for line in report_lines(found, config.output):
        report(line)
    crashed = found.files_rejected.get(CRASH, 0)
    if crashed:
        report(
            f"the reader itself failed on {crashed} files (kind {CRASH} in rejected.csv); the store"
            " lacks them; please report this"
        )
    return 1 if crashed else 0


def _read(items: list[Item], rules: Rules, writer: StoreWriter, workers: int) -> None:
    """Reads the files that are not in the store yet."""
    units = [items[k : k + _FILES_IN_A_UNIT] for k in range(0, len(items), _FILES_IN_A_UNIT)]
    done = writer.units_done(units)
    if done:
        report(f"{min(done * _FILES_IN_A_UNIT, len(items))} of {len(items)} files were read before")
    rest = units[done:]
    if not rest:
        return
    pool = OrderedPool(partial(read_item, rules=rules), failed, min(workers, len(rest)))
    loaded = load(item for unit in rest for item in unit)
    tasks = ([next(loaded) for _ in unit] for unit in rest)
    with closing(pool.results(tasks)) as results:
        found = zip(range(done, len(units)), rest, results, strict=True)
        doing = f"reading structures, {_FILES_IN_A_UNIT} files at a time"
        for number, unit, result in watched(found, doing, len(rest)):
            writer.add(number, unit, result)


def _write(config: PrepareConfig, finished: Finished, writer: StoreWriter) -> Report:
    """Writes the tables; the manifest, which makes the store whole, comes last."""
    output = config.output
    if not finished.entries:  # the list of an earlier command must not stand for this one
        (output / FILE_NAME).unlink(missing_ok=True)
    found = make_report(finished, writer.path.stat().st_size)
    write_atomically(output / "rejected.csv", csv_text(Rejected, finished.rejected))
    write_atomically(output / "notes.csv", csv_text(Note, finished.notes))
    write_atomically(output / "report.json", json.dumps(asdict(found), indent=2) + "\n")
    if finished.entries:
        write_atomically(output / FILE_NAME, manifest_text(finished.entries))
    return found


def _settings(rules: Rules) -> str:
    """All settings that decide on the contents of the store."""
    listed = sorted(rules.selection.listed) if rules.selection else None
    settings = {
        "rules of reading": _RULES_OF_READING,
        "filters": asdict(rules.filters),
        "predicted": asdict(rules.predicted) if rules.predicted else None,
        "list of ids": hashlib.sha256(json.dumps(listed).encode()).hexdigest() if listed else None,
    }
    return json.dumps(settings)
