"""The report of a search: Table 10, pairs of adapters, all trials, figures, one page with all."""

from pathlib import Path

from esmfold_peft.disk.csv_text import table_text
from esmfold_peft.disk.files import make_folder, write_atomically
from esmfold_peft.search.records import SearchRecord
from esmfold_peft.search.report.curves import draw_curves
from esmfold_peft.search.report.figure import draw_figure5
from esmfold_peft.search.report.page import page
from esmfold_peft.search.report.pairs import PAIR_COLUMNS, pair_cells, pairs_of
from esmfold_peft.search.report.table import (
    COLUMNS,
    TRIAL_COLUMNS,
    cells_of,
    rows_of,
    trial_cells,
)
from esmfold_peft.search.report.words import markdown

FOLDER = "report"


def write_report(record: SearchRecord) -> list[Path]:
    """Writes the report of a search, finished or not, into output/report.

    Args:
        record: what is known of the search.

    Returns:
        The files.

    Raises:
        UserError: the folder cannot be written to.
    """
    pairs, figure5, curves = pairs_of(record), draw_figure5(record), draw_curves(record)
    contents: dict[str, str | bytes] = {
        "table10.csv": table_text([*COLUMNS], [[*cells_of(row)] for row in rows_of(record)]),
        "table10.md": markdown(record, pairs),
        "pairs.csv": table_text([*PAIR_COLUMNS], [[*pair_cells(pair)] for pair in pairs.pairs]),
        "trials.csv": table_text(
            [*TRIAL_COLUMNS], [[*trial_cells(trial)] for trial in record.trials]
        ),
        **{f"figure5.{ending}": content for ending, content in figure5.items()},
        **{f"curves.{ending}": content for ending, content in curves.items()},
        "index.html": page(record, pairs, figure5["svg"], curves["svg"]),
    }
    folder = record.output / FOLDER
    make_folder(folder)
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]
