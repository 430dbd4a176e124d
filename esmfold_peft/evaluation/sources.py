"""The chains behind `--predictions` and `--references`, and the names that they go by."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePath

from esmfold_peft.datasets.features import Features
from esmfold_peft.datasets.manifest import FILE_NAME
from esmfold_peft.datasets.store import Store
from esmfold_peft.errors import UserError
from esmfold_peft.evaluation.work import pooled
from esmfold_peft.preparation.reading import read_content
from esmfold_peft.preparation.sources import SUFFIXES, Item, list_items, load, shown
from esmfold_peft.protein.read import parse_models
from esmfold_peft.protein.structure import ProteinStructure

_WORTHWHILE = 1000
"""Files for which another process pays: reading one takes some milliseconds."""


@dataclass(frozen=True)
class InFile:
    """A chain of a structure file.

    Attributes:
        item: the file.
        chain: author's name of the chain; None takes the only one.
    """

    item: Item
    chain: str | None = None

    @property
    def place(self) -> str:
        """The file, and the chain where it is named."""
        return self.item.place if self.chain is None else f"{self.item.place} chain {self.chain}"

    def read(self, *, predicted: bool) -> tuple[ProteinStructure, int]:
        """Reads the chain, and counts the models of its file, of which it is the first's.

        Args:
            predicted: whether it is a prediction. All atoms of one count: an occupancy of 0 is an
                experiment's word for an atom that was not seen, and a modified residue has the
                backbone, at least, of the residue that the reference has in its place.

        Raises:
            UserError: the file cannot be read, or holds no such chain, or several where none is
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
        return found[0], models


@dataclass(frozen=True, eq=False)
class InStore:
    """A chain of a store."""

    store: Store
    index: int

    @property
    def place(self) -> str:
        """The store and the chain."""
        return f"{self.store.path}/{self.store.manifest.ids[self.index]}"

    def read(self) -> Features:
        """Reads the chain."""
        return self.store[self.index]


@dataclass(frozen=True, eq=False)
class Entry:
    """A chain, or a file that could not be read, and its names.

    Attributes:
        name: the file's without endings, with the chain appended if it has several; the id of a
            chain in a store.
        id: as `read_structure` names it.
        file: the file's name without endings, whatever it holds.
        source: where the chain is.
        fault: why there is none; "" if there is.
    """

    name: str
    id: str
    file: str
    source: InFile | InStore
    fault: str = ""


class Side:
    """All predictions, or all references.

    Args:
        what: prediction or reference, for messages.
        entries: its chains.
    """

    def __init__(self, what: str, entries: list[Entry]) -> None:
        self.what = what
        self.entries = entries
        self._by_name: dict[str, list[Entry]] = {}
        self._by_id: dict[str, list[Entry]] = {}
        self._by_file: dict[str, list[Entry]] = {}
        for entry in entries:
            self._by_name.setdefault(entry.name, []).append(entry)
            self._by_id.setdefault(entry.id, []).append(entry)
            self._by_file.setdefault(entry.file, []).append(entry)

    def find(self, *names: str) -> Entry | None:
        """The chain of one of several names: one named after its file rather than by its id.

        Raises:
            UserError: a name stands for two chains.
        """
        for table in (self._by_name, self._by_id):
            for name in dict.fromkeys(names):
                found = table.get(name, [])
                if len(found) > 1:
                    places = " and ".join(entry.source.place for entry in found[:2])
                    raise UserError(f"{self.what}s: {name} is ambiguous: {places}")
                if found:
                    return found[0]
        return None

    def why_missing(self, name: str) -> str:
        """Says that a name stands for nothing, or for several chains of one file."""
        chains = [entry.name for entry in self._by_file.get(name, [])]
        if not chains:
            return f"{self.what}: none is named {name}"
        names = ", ".join(chains)
        return f"{self.what}: none is named {name}; its file has {names} (name one by --pairs)"


def open_side(what: str, sources: tuple[Path, ...], spool: Path, workers: int | None) -> Side:
    """Lists the chains of files, folders, tars and stores.

    Args:
        what: prediction or reference.
        sources: a folder with a manifest.csv is a store.
        spool: empty folder that receives the members of compressed tars, which can only be read
            one after the other.
        workers: processes.

    Raises:
        UserError: a source is missing or no store, or there is no structure file in them.
    """
    stores = [path for path in sources if (path / FILE_NAME).is_file()]
    items = _items(tuple(path for path in sources if path not in stores))
    entries = [entry for path in stores for entry in _stored(Store(path))]
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


def _stored(store: Store) -> Iterator[Entry]:
    for index, name in enumerate(store.manifest.ids):
        yield Entry(name, name, name, InStore(store, index))


def _items(sources: tuple[Path, ...]) -> list[Item]:
    """Structure files; where a folder holds one in both formats, the mmCIF file."""
    items = [item for item in list_items(sources, None) if item.kind != "name"]
    mmcif = {_without_ending(item) for item in items if _is_mmcif(item)}
    return [item for item in items if _is_mmcif(item) or _without_ending(item) not in mmcif]


def _is_mmcif(item: Item) -> bool:
    return PurePath(item.place).name.lower().removesuffix(".gz").endswith((".cif", ".mmcif"))


def _without_ending(item: Item) -> tuple[str, str]:
    return str(PurePath(item.place).parent), stem(item.place)


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
            raise UserError(
                f"{item.place}: cannot be unpacked to {path} ({error.strerror})"
            ) from error
        stamp = path.stat().st_mtime_ns
        yield replace(item, path=path, size=len(content), stamp=stamp, member=None)


def _index(item: Item) -> list[Entry]:
    """The chains of a file, or one entry that says why it has none."""
    if item.fault:
        return _faulty(item, item.fault)
    try:
        chains, _ = _chains(item, False)
    except OSError as error:
        return _faulty(item, error.strerror or str(error))
    except UserError as error:
        return _faulty(item, without_place(error, item.place))
    name = stem(item.place)
    if len(chains) == 1:
        return [Entry(name, chains[0].id, name, InFile(item))]
    return [
        Entry(f"{name}_{chain.chain}", chain.id, name, InFile(item, chain.chain))
        for chain in chains
    ]


def _not_indexed(item: Item, error: BaseException) -> list[Entry]:
    """A file that the reader could not take, by its crash or by an error nobody foresaw."""
    return _faulty(item, f"reading it failed ({type(error).__name__})")


def _faulty(item: Item, reason: str) -> list[Entry]:
    name = stem(item.place)
    return [Entry(name, name, name, InFile(item), reason)]


def without_place(error: UserError, place: str) -> str:
    """The reason in an error, printable and without the file's name in front."""
    return shown(" ".join(str(error).removeprefix(f"{place}: ").split()))


# The chains of a file are scored one after the other.
@lru_cache(maxsize=2)
def _chains(item: Item, predicted: bool) -> tuple[list[ProteinStructure], int]:
    data = read_content(item)
    return parse_models(data, item.place, occupied=not predicted, modified=predicted)
