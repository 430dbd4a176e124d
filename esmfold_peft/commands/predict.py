"""`esmfold-peft predict`: sequences to structures."""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
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
from esmfold_peft.prediction.files import write_files
from esmfold_peft.prediction.index_page import INDEX_FILE
from esmfold_peft.prediction.manifest import (
    OK,
    TABLE,
    UNFINISHED,
    PredictionRow,
    RowJournal,
    finish,
    is_there,
    read_rows,
    remove_others,
    require_new,
)
from esmfold_peft.prediction.pages import write_index, write_page
from esmfold_peft.prediction.predictor import Predictor, load
from esmfold_peft.prediction.result import Prediction
from esmfold_peft.prediction.shards import Shard
from esmfold_peft.prediction.tasks import Task, tasks_of
from esmfold_peft.protein.fasta import FastaRecord, read_fasta
from esmfold_peft.runs.run_directory import adapter_folder
from esmfold_peft.weights.esm2_weights import weights_hash

_WARNINGS_SHOWN = 20


def run(config: PredictConfig, shard: Shard | None = None) -> int:
    """Folds every record of FASTA files.

    Args:
        config: the settings.
        shard: which of several processes this is; None asks the launcher.

    Returns:
        0, or 1 if a record has no structure, or if files can no longer be written.

    Raises:
        UserError: a file or the model cannot be read, or the output folder has predictions; nothing
            has been written then.
    """
    started = time.time()
    shard = Shard.launched() if shard is None else shard
    if shard.world > 1 and Path("-") in config.fasta:
        raise UserError("fasta: - is standard input, which several processes cannot all read")
    if not config.resume:
        require_new(config.output)
    given = read_fasta(config.fasta, max_length=config.max_length)
    records, adapters = zip(*(_with_adapter(record, config) for record in given), strict=True)
    predictor, bank = _load(config, shard)
    if shard.rank == 0:
        _say_warnings(records)
    tasks = tasks_of(
        records,
        [_fingerprint(name, config) for name in adapters],
        config.num_seeds,
        _decided_by(config, predictor),
    )
    shard.meet()
    own = [tasks[place] for place in shard.share([task.record.length for task in tasks])]
    earlier = read_rows(config.output)
    todo = [task for task in own if not _is_done(task, earlier, config)]
    journal = RowJournal(config.output, shard.rank)
    _say_start(len(todo), len(own), predictor)
    rows = {}
    try:
        for task, found in watched(_folded(todo, config, predictor, bank), "folding", len(todo)):
            before = earlier.get(task.name)
            if before is not None:
                journal.add(replace(before, status=UNFINISHED))
            row = rows[task.name] = _written(task, found, config)
            if before is not None:
                remove_others(before, row, config.output)
            journal.add(row)
    except UserError as error:  # a full disk, for example
        report(f"{error}; {len(rows)} of {len(todo)} are done, --resume goes on with the others")
        return 1
    shard.wait()
    code = _finish(config, tasks, own, rows, started) if shard.ends() else 0
    return shard.agreed(code)


def _with_adapter(record: FastaRecord, config: PredictConfig) -> tuple[FastaRecord, str]:
    """A record and the adapter that it names; one that names a wrong one cannot be folded."""
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
        raise UserError(f"{place} names two adapters ({words[0]}, {words[1]})")
    name = words[0].removeprefix("adapter=")
    given = config.adapter_folders()
    if name not in given:
        known = f"--adapter gives {', '.join(given)}" if given else "no --adapter is given"
        raise UserError(f'{place} names the adapter "{name}", but {known}')
    return name


def _load(config: PredictConfig, shard: Shard) -> tuple[Predictor, AdapterBank | None]:
    """The model, and the adapters that records may name, each checked against it."""
    predictor = load(
        config.run,
        esmfold=config.esmfold,
        language_model=config.language_model,
        checkpoint=config.checkpoint,
        raw_weights=config.raw_weights,
        device=config.device,
        local_rank=shard.local_rank,
        precision=config.precision,
        chunk_size=config.chunk_size,
    )
    if config.pae and not predictor.predicts_pae:
        raise UserError(
            f"pae: {config.run} did not train its head of aligned errors (loss.weights.pae is 0 in"
            " it and in what it started from, if that is still there)"
        )
    folders = {name: adapter_folder(path) for name, path in config.adapter_folders().items()}
    if not folders:
        return predictor, None
    language_model = predictor.model.language_model
    bank = read_bank(folders, language_model, weights_hash(language_model))
    return predictor, bank.to(next(language_model.parameters()).device)


def _decided_by(config: PredictConfig, predictor: Predictor) -> list[object]:
    """What decides the files of every sequence alike."""
    recycles = predictor.recycles if config.num_recycles is None else config.num_recycles
    return [predictor.identity, predictor.model.bf16, recycles, config.pae, config.html]


def _fingerprint(name: str, config: PredictConfig) -> str:
    """An adapter by its name and what it is; its header names its tensors by their hash."""
    if not name:
        return ""
    header = adapter_folder(config.adapter_folders()[name]) / CONFIG_FILE
    return f"{name} {hashlib.sha256(header.read_bytes()).hexdigest()}"


def _is_done(task: Task, earlier: Mapping[str, PredictionRow], config: PredictConfig) -> bool:
    """Whether files of the same sequence, model and settings are there."""
    row = earlier.get(task.name)
    return row is not None and row.hash == task.hash and is_there(row, config.output)


def _folded(
    tasks: Sequence[Task],
    config: PredictConfig,
    predictor: Predictor,
    bank: AdapterBank | None,
) -> Iterator[tuple[Task, Folded | Failed]]:
    """The predictions of tasks: those that cannot be folded, the model's own adapter's, others'."""
    for task in tasks:
        if task.record.problem:
            yield task, Failed(0, task.record.problem)
    good = [task for task in tasks if not task.record.problem]
    own = [task for task in good if not task.adapter]
    others = [task for task in good if task.adapter]
    for group in (own, others):
        choice = None
        if group is others and group:
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
        files = write_files(config.output, prediction)
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
        "residues hidden from the language model": "15 %" if task.seed else "",
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
    """Writes the table if every sequence has a row, and says how it went."""
    there = read_rows(config.output) | rows
    current = {
        task.name: task.described(there[task.name])
        for task in tasks
        if task.name in there
        and there[task.name].hash == task.hash
        and there[task.name].status != UNFINISHED
    }
    whole = len(current) == len(tasks)
    if whole:
        # A sequence that is no longer in the files keeps its line, as it keeps its files.
        strangers = [row for name, row in there.items() if name not in current]
        table = [*(current[task.name] for task in tasks), *strangers]
        if config.html:
            write_index(config.output, table)
        elif not any(row.html for row in table):
            (config.output / INDEX_FILE).unlink(missing_ok=True)
        finish(config.output, table, started)
    counted = tasks if whole else own
    failed = sum(current[task.name].status != OK for task in counted)
    where = TABLE if whole else "other processes are at work"
    report(f"{len(counted) - failed} structures in {config.output}, {failed} failed ({where})")
    return 1 if failed else 0


def _say_warnings(records: Sequence[FastaRecord]) -> None:
    """Prints what cannot be folded, and then what may not be meant."""
    lines = [record.problem for record in records if record.problem]
    lines += [text for record in records for text in record.warnings]
    for line in lines[:_WARNINGS_SHOWN]:
        report(line)
    if len(lines) > _WARNINGS_SHOWN:
        report(f"and {len(lines) - _WARNINGS_SHOWN} more such lines (see {TABLE})")


def _say_start(todo: int, own: int, predictor: Predictor) -> None:
    device = next(predictor.model.parameters()).device
    there = f", {own - todo} are there already" if own > todo else ""
    report(f"folding {todo} sequences on {device}{there}")
