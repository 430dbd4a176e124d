"""`esmfold-peft search status`: how a search stands."""

import json

from esmfold_peft.config import SearchStatusConfig
from esmfold_peft.protein.files import is_locked
from esmfold_peft.search.reading import read_search
from esmfold_peft.search.status_view import print_status, status_json


def run(config: SearchStatusConfig) -> int:
    """Prints the tree of a search, or its facts as JSON.

    Raises:
        UserError: the folder is no search.
    """
    record = read_search(config.output)
    driven = is_locked(config.output)
    if config.json:
        print(json.dumps(status_json(record, driven), indent=2))
    else:
        print_status(record, driven)
    return 0
