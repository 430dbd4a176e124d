"""The web pages of a `predict`, beside the files that they show."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from esmfold_peft.disk.files import write_atomically
from esmfold_peft.errors import UserError
from esmfold_peft.prediction.index_page import INDEX_FILE, IndexRow, index_page
from esmfold_peft.prediction.manifest import OK, PredictionRow
from esmfold_peft.prediction.page import PageRecord, record_page
from esmfold_peft.prediction.result import Prediction


def write_page(
    folder: Path, prediction: Prediction, files: Iterable[str], facts: Mapping[str, str]
) -> str:
    """Writes the page of a prediction.

    Args:
        folder: that its files are in.
        prediction: what it shows.
        files: their names.
        facts: how it was folded, by name.

    Returns:
        The page's file name.
    """
    try:
        pdb = prediction.to_pdb()
    except UserError:
        pdb = ""
    record = PageRecord(
        name=prediction.name,
        header=prediction.header,
        chains=prediction.chains,
        pdb_text=pdb,
        plddt=prediction.plddt,
        pae=prediction.pae,
        largest_pae=prediction.largest_pae,
        ptm=prediction.ptm,
        facts=facts,
        files=tuple(files),
    )
    name = f"{prediction.name}.html"
    write_atomically(folder / name, record_page(record, INDEX_FILE))
    return name


def write_index(folder: Path, rows: Iterable[PredictionRow]) -> None:
    """Writes the page of all predictions.

    Args:
        folder: that the pages are in.
        rows: of the table, in its order.
    """
    lines = [
        IndexRow(
            name=row.name,
            header=row.header,
            chains=row.chains,
            length=row.length,
            plddt=row.plddt,
            ptm=row.ptm,
            page=row.html,
            problem="" if row.status == OK else row.status,
        )
        for row in rows
    ]
    write_atomically(folder / INDEX_FILE, index_page(lines))
