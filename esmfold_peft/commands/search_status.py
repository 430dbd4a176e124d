"""`esmfold-peft search status`: how a search stands."""

import json
from pathlib import Path

from esmfold_peft.config import SearchStatusConfig
from esmfold_peft.disk.files import LOCK, is_held
from esmfold_peft.errors import UserError
from esmfold_peft.search.reading import read_search
from esmfold_peft.search.status_view import print_status, status_json


def run(config: SearchStatusConfig) -> int:
    """Prints the tree of a search, or its facts as JSON.

    Raises:
        UserError: the folder is no search.
    """
    record = read_search(config.output)
    driven = _is_driven(config.output)
    if config.json:
        print(json.dumps(status_json(record, driven), indent=2))
    else:
        print_status(record, driven)
    return 0


def _is_driven(output: Path) -> bool | None:
    """Whether a process drives a search; None where its disk has no locks."""
    try:
        return is_held(output / LOCK)
    except UserError:
        return None
