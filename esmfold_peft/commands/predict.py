"""`esmfold-peft predict`: sequences to structures."""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from esmfold_peft import __version__
from esmfold_peft.adapters.bank import AdapterBank, AdapterChoice, read_bank
from esmfold_peft.adapters.io import CONFIG_FILE
from esmfold_peft.config import PredictConfig
from esmfold_peft.console import report, watched
from esmfold_peft.errors import UserError
from esmfold_peft.model.inference import Failed, Folded
from esmfold_peft.prediction.complexes import query
from esmfold_peft.prediction.pages import INDEX_FILE, write_index, write_page
from esmfold_peft.prediction.predictor import Predictor, load
from esmfold_peft.prediction.result import Prediction
from esmfold_peft.prediction.row_journal import (
    OK,
    TABLE,
    UNFINISHED,
    PredictionRow,
    RowJournal,
    finish,
    read_rows,
    require_new,
)
from esmfold_peft.prediction.tasks import Task, tasks_of
from esmfold_peft.prediction.workers import Worker
from esmfold_peft.protein.fasta import FastaRecord, read_fasta
from esmfold_peft.runs.run_directory import adapter_folder
from esmfold_peft.weights.esm2_weights import weights_hash

_WARNINGS_SHOWN = 20


def run(config: PredictConfig, worker: Worker | None = None) -> int:
    """Folds every record of FASTA files, or this worker's share of them.

    Returns 0, or 1 if a record has no structure or a file cannot be written any more. `worker` None
    asks the launcher.

    Raises:
        UserError: a file or the model cannot be read, or the output folder has predictions; nothing
            has been written then.
    """
    started = time.time()
    worker = Worker.launched() if worker is None else worker
    if worker.world > 1 and Path("-") in config.fasta:
        raise UserError(
            "fasta: - is standard input, which several processes cannot all read; name a file"
        )
    if not config.resume:
        require_new(config.output)
    given = read_fasta(config.fasta, max_length=config.max_length)
    records, adapters = zip(*(_with_adapter(record, config) for record in given), strict=True)
    predictor, bank = _load(config, worker)
    if worker.rank == 0:
        _report_warnings(records)
    recycles = predictor.recycles if config.num_recycles is None else config.num_recycles
    decided_by = [predictor.identity, predictor.model.bf16, recycles, config.pae, config.html]
    fingerprints = [_fingerprint(name, config) for name in adapters]
    tasks = tasks_of(records, fingerprints, config.num_seeds, decided_by)
    worker.meet()
    own = [tasks[place] for place in worker.share([task.record.length for task in tasks])]
    earlier = read_rows(config.output)
    todo = [task for task in own if not _is_done(task, earlier, config)]
    with closing(RowJournal(config.output, worker.rank)) as journal:
        device = next(predictor.model.parameters()).device
        done = f", {len(own) - len(todo)} are done already" if len(own) > len(todo) else ""
        report(f"folding {len(todo)} sequences on {device}{done}")
        rows = {}
        try:
            folded = _folded(todo, config, predictor, bank)
            for task, found in watched(folded, "folding", len(todo)):
                before = earlier.get(task.name)
                if before is not None:
                    journal.add(replace(before, status=UNFINISHED))
                row = rows[task.name] = _written(task, found, config)
                for name in set(before.files if before else ()) - set(row.files):
                    (config.output / name).unlink(missing_ok=True)
                journal.add(row)
        except UserError as error:  # a full disk, for example
            report(f"{error}; {len(rows)} of {len(todo)} are done; resume with --resume")
            return 1
        worker.wait()
        code = _finish(config, tasks, own, rows, started) if worker.finishes else 0
        return worker.agreed(code)


def _with_adapter(record: FastaRecord, config: PredictConfig) -> tuple[FastaRecord, str]:
    """A record and the adapter that it names; a wrong name becomes the record's problem."""
    try:
        return record, adapter_of(record, config)
    except UserError as error:
        return replace(record, chains=(), problem=record.problem or str(error)), ""


def adapter_of(record: FastaRecord, config: PredictConfig) -> str:
    """The adapter that a record's header names by the word adapter=name; "" for none.

    Raises:
        UserError: it names two, or one that the command was not given.
    """
    words = [word for word in record.header.split()[1:] if word.startswith("adapter=")]
    if not words:
        return ""
    place = f'{record.file}:{record.line}: record "{record.id}"'
    if len(words) > 1:
        raise UserError(f"{place} names two adapters ({words[0]}, {words[1]}); name one")
    name = words[0].removeprefix("adapter=")
    given = config.adapter_folders()
    if name not in given:
        known = f"--adapter gives {', '.join(given)}" if given else "no --adapter is given"
        raise UserError(f'{place} names the adapter "{name}", but {known}')
    return name


def _fingerprint(name: str, config: PredictConfig) -> str:
    """An adapter's name and the hash of its header, which holds the hash of its tensors."""
    if not name:
        return ""
    header = adapter_folder(config.adapter_folders()[name]) / CONFIG_FILE
    return f"{name} {hashlib.sha256(header.read_bytes()).hexdigest()}"


def _load(config: PredictConfig, worker: Worker) -> tuple[Predictor, AdapterBank | None]:
    """The model, and the adapters that records may name, each checked against it."""
    predictor = load(
        config.run,
        esmfold=config.esmfold,
        language_model=config.language_model,
        checkpoint=config.checkpoint,
        raw_weights=config.raw_weights,
        device=config.device,
        local_rank=worker.local_rank,
        precision=config.precision,
        chunk_size=config.chunk_size,
    )
    if config.pae and not predictor.predicts_pae:
        raise UserError(
            f"pae: {config.run} did not train its PAE head (loss.weights.pae is 0 there, and in the"
            " run that it started from if that still exists); remove --pae"
        )
    folders = {name: adapter_folder(path) for name, path in config.adapter_folders().items()}
    if not folders:
        return predictor, None
    language_model = predictor.model.language_model
    bank = read_bank(folders, language_model, weights_hash(language_model))
    return predictor, bank.to(next(language_model.parameters()).device)


def _is_done(task: Task, earlier: Mapping[str, PredictionRow], config: PredictConfig) -> bool:
    """Whether files of the same sequence, model and settings are there."""
    row = earlier.get(task.name)
    return row is not None and row.hash == task.hash and row.is_there(config.output)


def _folded(
    tasks: Sequence[Task], config: PredictConfig, predictor: Predictor, bank: AdapterBank | None
) -> Iterator[tuple[Task, Folded | Failed]]:
    """Folds with the model's own adapter first, then with those that records name."""
    for task in tasks:
        if task.record.problem:
            yield task, Failed(0, task.record.problem)
    good = [task for task in tasks if not task.record.problem]
    for named in (False, True):
        group = [task for task in good if bool(task.adapter) == named]
        choice = None
        if named and group:
            assert bank is not None
            choice = AdapterChoice(bank, torch.tensor([bank.index(t.adapter) for t in group]))
        results = predictor.fold_all(
            [query(task.name, task.record.chains, task.seed) for task in group],
            recycles=config.num_recycles,
            max_tokens=config.max_tokens_per_batch,
            choice=choice,
            pae=config.pae,
        )
        for found in results:
            yield group[found.index], found


def _written(task: Task, found: Folded | Failed, config: PredictConfig) -> PredictionRow:
    """Writes the files of a task and gives its row."""
    if isinstance(found, Failed):
        return task.row(found.reason)
    record = task.record
    prediction = Prediction.from_folded(task.name, record.header, record.chains, found)
    try:
        files = prediction.write(config.output)
        if config.html:
            facts = _facts(task, config)
            files["html"] = write_page(config.output, prediction, files.values(), facts)
    except MemoryError:
        return task.row("not enough memory to write the files")
    return task.row(
        OK,
        plddt=round(float(prediction.plddt.mean()), 2),
        ptm=None if found.ptm is None else round(found.ptm, 4),
        seconds=round(found.seconds, 3),
        **files,
    )


def _facts(task: Task, config: PredictConfig) -> dict[str, str]:
    """How a prediction was made, for its page."""
    facts = {
        "model": str(config.run or config.esmfold),
        "adapter": task.adapter,
        "residues masked in the language model": "15 %" if task.seed else "",
        "program": f"esmfold_peft {__version__}",
        "hash": task.hash,
    }
    return {name: value for name, value in facts.items() if value}


def _finish(
    config: PredictConfig,
    tasks: Sequence[Task],
    own: Sequence[Task],
    rows: dict[str, PredictionRow],
    started: float,
) -> int:
    """Writes the table if every sequence has a row, and reports how it went."""
    found = read_rows(config.output) | rows
    current = {
        task.name: task.described(row)
        for task in tasks
        if (row := found.get(task.name)) and row.hash == task.hash and row.status != UNFINISHED
    }
    whole = len(current) == len(tasks)
    if whole:
        # A sequence that is no longer in the FASTA keeps its line, as it keeps its files.
        others = [row for name, row in found.items() if name not in current]
        table = [*(current[task.name] for task in tasks), *others]
        if config.html:
            write_index(config.output, table)
        elif not any(row.html for row in table):
            (config.output / INDEX_FILE).unlink(missing_ok=True)
        finish(config.output, table, started)
    counted = tasks if whole else own
    failed = sum(current[task.name].status != OK for task in counted)
    where = TABLE if whole else "other processes are still at work"
    report(f"{len(counted) - failed} structures in {config.output}, {failed} failed ({where})")
    return 1 if failed else 0


def _report_warnings(records: Sequence[FastaRecord]) -> None:
    """Reports the records that cannot be folded, then the warnings of the others."""
    lines = [record.problem for record in records if record.problem]
    lines += [text for record in records for text in record.warnings]
    for line in lines[:_WARNINGS_SHOWN]:
        report(line)
    if len(lines) > _WARNINGS_SHOWN:
        report(f"and {len(lines) - _WARNINGS_SHOWN} more such lines (see {TABLE})")
