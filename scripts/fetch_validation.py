"""Lists recent chains to validate on: targets of CAMEO, or new chains of the PDB.

    python scripts/fetch_validation.py --from 2022-08-01 --to 2022-10-31 --output validation.txt
    python scripts/fetch_validation.py --source rcsb --from ... --to ... --output validation.txt

The output has one chain id a line (7y3k_A), sorted, under comments that say where it is from.
`scripts/fetch_pdb.py validation.txt` fetches the structures, and
`esmfold-peft prepare mmcif validation.txt` takes the chains from them.

--source cameo: OpenFold validates on targets of CAMEO (https://cameo3d.org), and this asks CAMEO as
OpenFold's scripts/download_cameo.py does: /modeling/targets/<period>/ajax/?to_date=<date> answers
{"aaData": [{"pdbid": "7ctx", "pdbid_chain": "B", "date": "2022-04-23", "seq_length": 323, ...}]}.
A date is that of the sequence's submission, a Saturday; the structure appears on the Wednesday
after. The chain is taken for the author's name, as in OpenFold: of the 184 targets of August to
October 2022 below 750 residues, 183 have that length in the chain that PDB files call so (both are
in splits/ of EigenFold). CAMEO ended this category in April 2025 and may stop answering; then use
the other source.

--source rcsb: protein chains by the date of their release, from RCSB's search API
(https://search.rcsb.org), one for each cluster of --identity percent that RCSB computes, the best
resolved; the author's name of a chain is asked from its data API (https://data.rcsb.org). Unlike
CAMEO's, these may resemble older structures.

Exit codes: 0 written, 2 wrong usage, no answer or none that can be used, 130 stopped by Ctrl-C.
"""

import argparse
import datetime
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from downloading import (
    OneLineParser,
    add_patience,
    between,
    ended,
    http_url,
    patience_of,
)

from esmfold_peft.console import report
from esmfold_peft.disk.downloads import fetch_bytes
from esmfold_peft.disk.files import write_atomically
from esmfold_peft.errors import UserError

CAMEO = "https://www.cameo3d.org"
SEARCH = "https://search.rcsb.org"
DATA = "https://data.rcsb.org"
# CAMEO's periods end at a date. CAMEO does not say how many days each has (the year has 52 weeks),
# so these are on the safe side; targets outside of the dates are skipped.
_PERIODS = {"1-week": 6, "1-month": 27, "3-months": 83, "6-months": 167, "1-year": 363}
_CHAIN = re.compile(r"(?:[1-9][a-z0-9]{3}|pdb_[a-z0-9]{8})_[A-Za-z0-9]{1,4}")
_BATCH = 100
_AUTHORS_NAMES = """query ($ids: [String!]!) { polymer_entities(entity_ids: $ids) {
  rcsb_id rcsb_polymer_entity_container_identifiers { auth_asym_ids } } }"""


def main(words: list[str] | None = None) -> int:
    """Writes the list that the command line asks for and returns the exit code."""
    args = parse(words)
    given = sys.argv[1:] if words is None else words
    return ended("fetch_validation", lambda: write_list(args, given))


def parse(words: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--from", dest="begin", type=day, required=True, metavar="DATE", help="first day")
    add("--to", dest="end", type=day, required=True, metavar="DATE", help="last day")
    add("--output", type=Path, required=True, help="text file for the ids")
    add("--source", choices=["cameo", "rcsb"], default="cameo", help="(default: cameo)")
    add("--server", type=http_url, metavar="URL", help=f"(default: {CAMEO} or {SEARCH})")
    add("--data-server", type=http_url, default=DATA, metavar="URL", help=f"(default: {DATA})")
    add("--max-length", type=between(int, 1, 100_000), default=700, metavar="N",
        help="residues in the sequence (default: 700, as in OpenFold)")  # fmt: skip
    add("--max-resolution", type=between(float, 0.1, 100), default=4.5, metavar="Å",
        help="with --source rcsb; excludes NMR, which has none (default: 4.5)")  # fmt: skip
    add("--identity", type=int, choices=[30, 50, 70, 90, 95, 100], default=95,
        help="with --source rcsb: percent, of a cluster's sequences (default: 95)")  # fmt: skip
    add_patience(parser)
    args = parser.parse_args(words)
    args.server = args.server or (CAMEO if args.source == "cameo" else SEARCH)
    if args.begin > args.end:
        parser.error(f"--from {args.begin} is after --to {args.end}")
    return args


def day(word: str) -> datetime.date:
    """A date for argparse."""
    try:
        return datetime.date.fromisoformat(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{word!r} is no date such as 2022-08-01") from error


def write_list(args: argparse.Namespace, words: list[str]) -> int:
    """Asks for the chains and writes them.

    Raises:
        UserError: there is no usable answer, or no chain in it.
    """
    named = set(cameo(args) if args.source == "cameo" else rcsb(args))
    chains = sorted(name for name in named if _CHAIN.fullmatch(name))
    if not chains:
        raise UserError(f"{args.server}: no chains from {args.begin} to {args.end}")
    if odd := sorted(named.difference(chains)):
        report(f"skipped, because they are not ids of chains: {', '.join(odd)}")
    what = "CAMEO targets submitted" if args.source == "cameo" else "PDB chains released"
    lines = [
        f"# {what} from {args.begin} to {args.end}, source {args.server}",
        f"# python scripts/fetch_validation.py {shlex.join(words)}",
        *chains,
    ]
    write_atomically(args.output, "\n".join(lines) + "\n")
    print(f"{len(chains)} chains in {args.output}")
    return 0


def cameo(args: argparse.Namespace) -> Iterator[str]:
    """Chains that were targets of CAMEO.

    Raises:
        UserError: CAMEO has no period that long, or its answer is not what it was.
    """
    days = (args.end - args.begin).days
    period = next((name for name, length in _PERIODS.items() if days <= length), None)
    if period is None:
        raise UserError(f"--from: CAMEO's longest period is a year, this is {days} days")
    url = f"{args.server}/modeling/targets/{period}/ajax/?to_date={args.end}"
    answer = ask(url, args)
    for number, row in enumerate(member(answer, "aaData", list, url), 1):
        place = f"{url}: target {number}"
        try:
            submitted = datetime.date.fromisoformat(member(row, "date", str, place))
        except ValueError as error:
            raise UserError(f"{place}: its date is {row['date']!r}") from error
        name = (
            f"{member(row, 'pdbid', str, place).lower()}_{member(row, 'pdbid_chain', str, place)}"
        )
        short = member(row, "seq_length", int, place) <= args.max_length
        if short and args.begin <= submitted <= args.end:
            yield name


def rcsb(args: argparse.Namespace) -> Iterator[str]:
    """Chains that were released, one for each cluster of similar sequences.

    Raises:
        UserError: an answer is not as documented.
    """
    url = f"{args.server}/rcsbsearch/v2/query"
    answer = ask(url, args, search_request(args))
    if answer is None:
        return
    hits = member(answer, "result_set", list, url)
    ids = [member(hit, "identifier", str, f"{url}: hit {n}") for n, hit in enumerate(hits, 1)]
    url = f"{args.data_server}/graphql"
    for start in range(0, len(ids), _BATCH):
        batch = {"ids": ids[start : start + _BATCH]}
        answer = ask(url, args, {"query": _AUTHORS_NAMES, "variables": batch})
        data = member(answer, "data", dict, url)
        for entity in member(data, "polymer_entities", list, url):
            id = member(entity, "rcsb_id", str, url)
            place = f"{url}: {id}"
            known = member(entity, "rcsb_polymer_entity_container_identifiers", dict, place)
            names = member(known, "auth_asym_ids", list, place)
            yield f"{id.rpartition('_')[0].lower()}_{names[0] if names else ''}"


def search_request(args: argparse.Namespace) -> dict[str, Any]:
    """The question for RCSB's search API."""
    days = {"from": f"{args.begin}", "to": f"{args.end}"}
    days |= {"include_lower": True, "include_upper": True}
    conditions = [
        ("rcsb_accession_info.initial_release_date", "range", days),
        ("entity_poly.rcsb_entity_polymer_type", "exact_match", "Protein"),
        ("entity_poly.rcsb_sample_sequence_length", "less_or_equal", args.max_length),
        ("rcsb_entry_info.resolution_combined", "less_or_equal", args.max_resolution),
    ]
    keys = ("attribute", "operator", "value")
    nodes = [
        {"type": "terminal", "service": "text", "parameters": dict(zip(keys, row, strict=True))}
        for row in conditions
    ]
    best = {"sort_by": "rcsb_entry_info.resolution_combined", "direction": "asc"}
    clusters = {"aggregation_method": "sequence_identity", "similarity_cutoff": args.identity}
    options = {
        "results_content_type": ["experimental"],
        "return_all_hits": True,
        "group_by": clusters | {"ranking_criteria_type": best},
        "group_by_return_type": "representatives",
    }
    query = {"type": "group", "logical_operator": "and", "nodes": nodes}
    return {"query": query, "return_type": "polymer_entity", "request_options": options}


def ask(url: str, args: argparse.Namespace, request: dict[str, Any] | None = None) -> Any:
    """The JSON that a server answers; None for an empty answer, which is RCSB's for no hits.

    Raises:
        UserError: it does not answer, or with something else.
    """
    body = None if request is None else json.dumps(request).encode()
    answer = fetch_bytes(url, patience_of(args), body)
    if not answer and request is not None:
        return None
    try:
        return json.loads(answer)
    except (ValueError, RecursionError) as error:
        start = answer[:40].decode(errors="replace")
        raise UserError(f"{url}: the answer is not JSON but starts {start!r}") from error


def member(holder: Any, name: str, kind: type, place: str) -> Any:
    """A value in a JSON object.

    Raises:
        UserError: it is missing or of another kind.
    """
    value = holder.get(name) if isinstance(holder, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{place}: no {name!r} ({kind.__name__}) in the answer")
    return value


if __name__ == "__main__":
    sys.exit(main())
