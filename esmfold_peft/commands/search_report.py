"""`esmfold-peft search report`: table, figures and page of a search, as far as it is."""

from esmfold_peft.config import SearchReportConfig
from esmfold_peft.search.reading import read_search
from esmfold_peft.search.report import write_report


def run(config: SearchReportConfig) -> int:
    """Writes the report and prints its files.

    Raises:
        UserError: the folder is no search, or the report cannot be written.
    """
    for path in write_report(read_search(config.output)):
        print(path)
    return 0
