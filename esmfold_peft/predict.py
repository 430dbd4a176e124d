"""`esmfold-peft predict`: sequences to structures."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from esmfold_peft.adapter_commands.folders import adapter_folder
from esmfold_peft.adapters.bank import AdapterBank, AdapterChoice, read_bank
from esmfold_peft.config import PredictConfig
from esmfold_peft.console import report, watched
from esmfold_peft.csv_text import csv_text
from esmfold_peft.devices import choose_device
from esmfold_peft.errors import UserError
from esmfold_peft.model.esm2_weights import weights_hash
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.inference import Folded, fold, sequence_features, to_structure
from esmfold_peft.model.kernels import CHECKED_LENGTH, check_kernels
from esmfold_peft.protein.fasta import FastaRecord, read_fasta
from esmfold_peft.protein.files import make_folder, write_atomically
from esmfold_peft.protein.structure import ProteinStructure
from esmfold_peft.protein.write import to_mmcif, to_pdb
from esmfold_peft.training.run_directory import load_model

_LONGEST_NAME = 100


@dataclass(frozen=True)
class PredictionRow:
    """One line of predictions.csv.

    Attributes:
        id: first word of the FASTA header.
        header: the whole header.
        length: residues.
        replaced: letters B, J, O, U and Z that were folded as X.
        adapter: the adapter that the record names; empty for the run's own.
        plddt: mean predicted lDDT-Cα, 0 to 100.
        pdb: file name; empty where the structure does not fit into the PDB format.
        mmcif: file name; empty if the record failed.
        status: "ok", or why there is no structure.
    """

    id: str
    header: str
    length: int
    replaced: int
    adapter: str
    plddt: float
    pdb: str
    mmcif: str
    status: str


def run(config: PredictConfig) -> int:
    """Folds every record of a FASTA file.

    Raises:
        UserError: the FASTA or the run cannot be read; nothing has been written then.
    """
    records = read_fasta(config.fasta)
    adapters = [adapter_of(record, config) for record in records]
    model, trained = load_model(
        config.run,
        checkpoint=config.checkpoint,
        raw=config.raw_weights,
        chunk=config.chunk,
        kernels=config.kernels,
    )
    bank = _read_bank(config, model)
    device = choose_device(config.accelerator)
    check_kernels(trained.model, device, length=CHECKED_LENGTH, bf16=model.bf16)
    model.to(device)
    if bank is not None:
        bank.to(device)
    make_folder(config.output)
    names = file_names([record.id for record in records])
    chains = [sequence_features(r.id, r.sequence) for r in records]
    recycles = trained.model.max_recycles if config.recycles is None else config.recycles
    groups = _by_adapter(adapters, bank)
    folded = (
        replace(item, index=places[item.index])
        for places, choice in groups
        for item in fold(
            model,
            [chains[place] for place in places],
            recycles=recycles,
            max_tokens=config.max_tokens,
            choice=choice,
        )
    )
    rows: dict[int, PredictionRow] = {}
    for item in watched(folded, "folding", len(records)):
        place = item.index
        rows[place] = write_record(
            config.output, names[place], records[place], item, adapters[place]
        )
    table = csv_text(PredictionRow, (rows[index] for index in range(len(records))))
    write_atomically(config.output / "predictions.csv", table)
    failed = sum(row.status != "ok" for row in rows.values())
    report(
        f"{len(rows) - failed} structures in {config.output}, {failed} failed (predictions.csv)",
    )
    return 1 if failed else 0


def adapter_of(record: FastaRecord, config: PredictConfig) -> str:
    """The adapter that a record's header names by the word adapter=name; "" for none.

    Raises:
        UserError: it names two, or one that the command was not given.
    """
    words = [word for word in record.header.split()[1:] if word.startswith("adapter=")]
    if not words:
        return ""
    place = f'{config.fasta}:{record.line}: record "{record.id}"'
    if len(words) > 1:
        raise UserError(f"{place} names two adapters ({words[0]}, {words[1]})")
    name = words[0].removeprefix("adapter=")
    given = config.adapter_folders()
    if name not in given:
        known = f"--adapter gives {', '.join(given)}" if given else "no --adapter is given"
        raise UserError(f'{place} names the adapter "{name}", but {known}')
    return name


def _read_bank(config: PredictConfig, model: FoldingModel) -> AdapterBank | None:
    """The adapters that records may name, each checked against the run's language model."""
    given = config.adapter_folders()
    if not given:
        return None
    folders = {name: adapter_folder(folder) for name, folder in given.items()}
    language_model = model.language_model
    return read_bank(folders, language_model, weights_hash(language_model))


def _by_adapter(
    adapters: list[str], bank: AdapterBank | None
) -> Iterator[tuple[list[int], AdapterChoice | None]]:
    """Places of the records that use the run's adapter, and of those that name one."""
    yield [place for place, name in enumerate(adapters) if not name], None
    places = [place for place, name in enumerate(adapters) if name]
    if places:
        assert bank is not None
        which = torch.tensor([bank.index(adapters[place]) for place in places])
        yield places, AdapterChoice(bank, which)


def file_names(ids: list[str]) -> list[str]:
    """File names for record ids: safe on every file system, and unique even where case is ignored.

    Letters, digits, ".", "_" and "-" stay; anything else becomes "_". Names that would be equal get
    a number.
    """
    taken: set[str] = set()
    names = []
    for name in ids:
        safe = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".-")[:_LONGEST_NAME] or "_"
        unique, count = safe, 1
        while unique.lower() in taken:
            count += 1
            unique = f"{safe}-{count}"
        taken.add(unique.lower())
        names.append(unique)
    return names


def _write_pdb(path: Path, structure: ProteinStructure) -> str:
    """Writes the PDB file and returns its name; "" if the structure is too large for the format."""
    try:
        text = to_pdb(structure)
    except UserError:
        return ""
    write_atomically(path, text)
    return path.name


def write_record(
    output: Path, name: str, record: FastaRecord, folded: Folded, adapter: str = ""
) -> PredictionRow:
    """Writes the files of one prediction; one that is not finite gets none and says so.

    Args:
        output: folder that exists.
        name: file name without ending.
        record: what was folded.
        folded: the prediction.
        adapter: the one that the record names.
    """
    structure = to_structure(name, record.sequence, folded)
    pdb, mmcif, status = "", "", "ok"
    if np.isfinite(structure.positions).all() and folded.plddt.isfinite().all():
        mmcif = f"{name}.cif"
        write_atomically(output / mmcif, to_mmcif(structure))
        pdb = _write_pdb(output / f"{name}.pdb", structure)
    else:
        status = "the prediction is not finite"
    plddt = round(100 * float(folded.plddt.mean()), 2)
    length = len(record.sequence)
    return PredictionRow(
        record.id, record.header, length, record.replaced, adapter, plddt, pdb, mmcif, status
    )
