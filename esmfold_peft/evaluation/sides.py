"""The chains of `--predictions` and `--references`, and their names."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePath

from esmfold_peft.datasets.manifest import FILE_NAME
from esmfold_peft.datasets.store import Store
from esmfold_peft.errors import UserError
from esmfold_peft.evaluation.chain import Chain, from_structure
from esmfold_peft.evaluation.work import pooled
from esmfold_peft.preparation.reading import read_content
from esmfold_peft.preparation.sources import SUFFIXES, Item, list_items, load, shown
from esmfold_peft.protein.read import parse_models
from esmfold_peft.protein.structure import ProteinStructure

_WORTHWHILE = 1000
"""Files for each process: starting one takes seconds, reading a file some milliseconds."""


@dataclass(frozen=True)
class InFile:
    """A chain of a structure file, by the author's name; None takes the only one."""

    item: Item
    chain: str | None = None

    @property
    def place(self) -> str:
        """The file, and the chain if it is named."""
        return self.item.place if self.chain is None else f"{self.item.place} chain {self.chain}"

    def read(self, *, predicted: bool) -> Chain:
        """Reads the chain, of the file's first model.

        All atoms of a prediction count: an occupancy of 0 means that an experiment did not see the
        atom, and a modified residue has at least the backbone of the reference's residue.

        Raises:
            UserError: the file cannot be read, or holds no such chain, or several and none is
                named.
        """
        try:
            chains, models = _chains(self.item, predicted)
        except OSError as error:
            raise UserError(error.strerror or str(error)) from error
        found = [chain for chain in chains if self.chain in (None, chain.chain)]
        names = ", ".join(chain.chain for chain in chains)
        if not found:
            raise UserError(f'no protein chain "{self.chain}" (the file has {names})')
        if self.chain is None and len(found) > 1:
            raise UserError(f"has the chains {names}, and none is named")
        return from_structure(found[0], models)


@dataclass(frozen=True, eq=False)
class InStore:
    """A chain of a store."""

    store: Store
    index: int

    @property
    def place(self) -> str:
        """The store and the chain."""
        return f"{self.store.path}/{self.store.manifest.ids[self.index]}"


@dataclass(frozen=True, eq=False)
class Entry:
    """A chain and its names, or a file that could not be read.

    Attributes:
        name: the file's without endings, with the chain appended if it has several; the id of a
            chain in a store.
        id: as `read_structure` names it.
        file: the file's name without endings.
        source: where the chain is.
        fault: why it cannot be read; "" if it can.
    """

    name: str
    id: str
    file: str
    source: InFile | InStore
    fault: str = ""


class Side:
    """All predictions, or all references; `what` says which in messages."""

    def __init__(self, what: str, entries: list[Entry]) -> None:
        self.what = what
        self.entries = entries
        self._tables = {kind: defaultdict(list) for kind in ("name", "id", "file")}
        for entry in entries:
            for kind, table in self._tables.items():
                table[getattr(entry, kind)].append(entry)

    def find(self, *names: str) -> Entry | None:
        """The chain with one of these names: of its file, or else its id.

        Raises:
            UserError: a name stands for two chains.
        """
        for kind in ("name", "id"):
            for name in dict.fromkeys(names):
                found: list[Entry] = self._tables[kind].get(name, [])
                if len(found) > 1:
                    places = " and ".join(entry.source.place for entry in found[:2])
                    raise UserError(f"{self.what}s: {name} is ambiguous: {places}")
                if found:
                    return found[0]
        return None

    def why_missing(self, name: str) -> str:
        """The reason why a name is not found: there is none, or its file has several chains."""
        names = ", ".join(entry.name for entry in self._tables["file"].get(name, []))
        of_file = f"; its file has {names} (name one by --pairs)" if names else ""
        return f"{self.what}: none is named {name}{of_file}"


def open_side(what: str, sources: tuple[Path, ...], spool: Path, workers: int | None) -> Side:
    """Lists the chains of files, folders, tars and stores (folders with a manifest.csv).

    `spool` is an empty folder for the members of compressed tars, which can only be read one after
    the other.

    Raises:
        UserError: a source is missing or no store, or there is no structure file in them.
    """
    stores = [path for path in sources if (path / FILE_NAME).is_file()]
    items = _items(tuple(path for path in sources if path not in stores))
    entries = [
        Entry(name, name, name, InStore(store, index))
        for store in map(Store, stores)
        for index, name in enumerate(store.manifest.ids)
    ]
    spooled = _spooled(load(items), spool)
    lists = pooled(
        _index, _not_indexed, spooled, count=len(items), workers=workers, worthwhile=_WORTHWHILE
    )
    for listed in lists:
        entries += listed
    if not entries:
        endings = ", ".join(SUFFIXES)
        raise UserError(f"{sources[0]}: no structure file ({endings}, plain or .gz)")
    return Side(what, entries)


def stem(place: str) -> str:
    """The name of a file without the endings of structure files."""
    name = PurePath(place).name
    for endings in ((".gz",), SUFFIXES):
        ending = next((e for e in endings if name.lower().endswith(e)), "")
        name = name[: len(name) - len(ending)]
    return name


def _items(sources: tuple[Path, ...]) -> list[Item]:
    """Structure files; of x.cif and x.pdb in one folder the mmCIF file."""

    def name(item: Item) -> tuple[str, str]:
        return str(PurePath(item.place).parent), stem(item.place)

    items = [item for item in list_items(sources, None) if item.kind != "name"]
    mmcif = {name(item) for item in items if _is_mmcif(item)}
    return [item for item in items if _is_mmcif(item) or name(item) not in mmcif]


def _is_mmcif(item: Item) -> bool:
    return item.place.lower().removesuffix(".gz").endswith((".cif", ".mmcif"))


def _spooled(loaded: Iterable[tuple[Item, bytes | None]], spool: Path) -> Iterator[Item]:
    """Files as they are, and the members of compressed tars as files."""
    for number, (item, content) in enumerate(loaded):
        if content is None or item.fault:
            yield item
            continue
        path = spool / str(number)
        try:
            path.write_bytes(content)
        except OSError as error:
            reason = f"cannot be unpacked to {path} ({error.strerror})"
            raise UserError(f"{item.place}: {reason}") from error
        stamp = path.stat().st_mtime_ns
        yield replace(item, path=path, size=len(content), stamp=stamp, member=None)


def _index(item: Item) -> list[Entry]:
    """The chains of a file, or one entry with the reason why it has none."""
    chains, fault, name = [], item.fault, stem(item.place)
    try:
        chains = [] if fault else _chains(item, False)[0]
    except OSError as error:
        fault = error.strerror or str(error)
    except UserError as error:
        fault = without_place(error, item.place)
    if fault:
        return [Entry(name, name, name, InFile(item), fault)]
    if len(chains) == 1:
        return [Entry(name, chains[0].id, name, InFile(item))]
    return [
        Entry(f"{name}_{chain.chain}", chain.id, name, InFile(item, chain.chain))
        for chain in chains
    ]


def _not_indexed(item: Item, error: BaseException) -> list[Entry]:
    """A file whose reading crashed, or failed with an unexpected error."""
    return _index(replace(item, fault=f"reading it failed ({type(error).__name__})"))


def without_place(error: UserError, place: str) -> str:
    """The reason in an error, printable and without the file's name in front."""
    return shown(" ".join(str(error).removeprefix(f"{place}: ").split()))


# The chains of a file are scored one after the other.
@lru_cache(maxsize=2)
def _chains(item: Item, predicted: bool) -> tuple[list[ProteinStructure], int]:
    data = read_content(item)
    return parse_models(data, item.place, occupied=not predicted, modified=predicted)
