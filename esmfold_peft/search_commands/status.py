"""`esmfold-peft search status`: how a search stands."""

import json

from esmfold_peft.config import SearchStatusConfig
from esmfold_peft.search.reading import read_search
from esmfold_peft.search.status_view import print_status, status_json


def run(config: SearchStatusConfig) -> int:
    """Prints the tree of a search, or its facts as JSON.

    Raises:
        UserError: the folder is no search.
    """
    record = read_search(config.output)
    if config.json:
        print(json.dumps(status_json(record), indent=2, ensure_ascii=False))
    else:
        print_status(record)
    return 0
