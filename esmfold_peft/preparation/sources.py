"""The structure files behind the sources of `prepare`: files, folders, tars, lists of ids."""

import lzma
import os
import re
import stat
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from esmfold_peft.errors import UserError
from esmfold_peft.preparation.selection import Selection

SUFFIXES = (".cif", ".mmcif", ".pdb", ".ent")
_STRUCTURE = tuple(suffix + gz for suffix in SUFFIXES for gz in ("", ".gz"))
_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_LIST = ".txt"
_LARGEST = 4 << 30
_DAMAGES = (
    *(tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError),
    *(OverflowError, MemoryError),  # a damaged header may ask for any number of bytes
)
_PDB_FILE = re.compile(r"(?:pdb)?([0-9][a-z0-9]{3})(?:[._-].*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Item:
    """One file to read, or one that is not read and why.

    Attributes:
        place: its name in reports: a path, or "<tar>/<member>"; printable.
        path: the file on disk; of a member, the tar.
        size: bytes.
        stamp: time of the last change of `path`, in ns.
        offset: first byte of a member in a tar that is not compressed.
        member: place of a member in a compressed tar, which can only be read from its beginning.
        fault: why it is not read; empty if it is.
        kind: of the fault, for counting.
    """

    place: str
    path: Path
    size: int = 0
    stamp: int = 0
    offset: int | None = None
    member: int | None = None
    fault: str = ""
    kind: str = ""


Loaded = tuple[Item, bytes | None]
"""A file, and its content where that can only be had in passing (compressed tars)."""


def list_items(
    sources: tuple[Path, ...], selection: Selection | None, store: Path | None = None
) -> list[Item]:
    """Every file of the sources, in their order and sorted inside folders.

    Args:
        sources: files, folders, tars.
        selection: what is wanted of them; files whose names are PDB codes of something else are not
            read.
        store: folder that is passed over, since what is made of the sources is no source.

    Raises:
        UserError: a source does not exist, or is the store.
    """
    passed_over = {_identity(store.stat())} if store and os.path.isdir(store) else set()
    items = [item for source in sources for item in _items(source, passed_over)]
    return items if selection is None else [_selected(item, selection) for item in items]


def load(items: Iterable[Item]) -> Iterator[Loaded]:
    """Gives members of compressed tars their content, and passes other files on.

    Args:
        items: members of a tar one after the other, so that it is read once.
    """
    tar, passed, stream = None, -1, iter(())
    for item in items:
        if item.member is None:
            yield item, None
            continue
        if item.path != tar or item.member <= passed:
            tar, stream = item.path, _contents(item.path)
        passed = item.member
        content = next((found for number, found in stream if number == item.member), None)
        if not item.fault and (content is None or len(content) != item.size):
            item = replace(item, fault="its tar is damaged before it", kind="tar")
        yield item, content


def split_lists(sources: tuple[Path, ...]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Parts sources into structures and lists of ids, which are .txt files.

    Raises:
        UserError: there are only lists.
    """
    lists = tuple(source for source in sources if source.suffix.lower() == _LIST)
    others = tuple(source for source in sources if source.suffix.lower() != _LIST)
    if not others:
        raise UserError(
            f"{sources[0]}: a list of ids; name the files or folders with the structures too"
        )
    return others, lists


def shown(name: str) -> str:
    """A name without characters that end a line or cannot be written as UTF-8."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


_Identity = tuple[int, int]


def _identity(found: os.stat_result) -> _Identity:
    return found.st_dev, found.st_ino


def _items(source: Path, passed_over: set[_Identity]) -> Iterator[Item]:
    try:
        found = source.stat()
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}") from error
    if _identity(found) in passed_over:
        raise UserError(f"{source}: is a source and the output; choose another folder as output")
    if source.is_dir():
        yield from _folder(source, passed_over)
    elif source.name.lower().endswith(_TAR):
        yield from _tar(source, found)
    else:
        yield _file(source)  # named by hand: whatever its name


def _folder(folder: Path, passed_over: set[_Identity]) -> Iterator[Item]:
    """Files below a folder, links followed, by name."""
    unreadable: list[OSError] = []
    visited = set(passed_over)
    for parent, folders, names in os.walk(folder, onerror=unreadable.append, followlinks=True):
        folders.sort()
        try:
            here = _identity(os.stat(parent))
        except OSError as error:  # it went away, or lies in a folder that may only be listed
            unreadable.append(error)
            continue
        # A link to a folder above would lead around in circles.
        if here in visited:
            folders.clear()
            continue
        visited.add(here)
        hidden = any(part.startswith(".") for part in Path(parent).relative_to(folder).parts)
        for name in sorted(names):
            path = Path(parent) / name
            # Programs that fetch structures keep unfinished ones like this.
            if hidden or name.startswith("."):
                yield _fault(path, "a hidden file, or in a hidden folder", "name")
            else:
                yield from _inside(path)
    for error in unreadable:
        yield _unreadable(Path(error.filename), error)


def _inside(path: Path) -> Iterator[Item]:
    name = path.name.lower()
    if name.endswith(_TAR):
        try:
            found = path.stat()
        except OSError as error:
            yield _unreadable(path, error)
        else:
            yield from _tar(path, found)
    elif name.endswith(_STRUCTURE):
        yield _file(path)
    else:
        yield _not_by_name(shown(str(path)), path)


def _file(path: Path) -> Item:
    try:
        found = path.stat()
    except OSError as error:
        return _unreadable(path, error)
    if not stat.S_ISREG(found.st_mode):
        return _fault(path, "not a regular file", "unreadable")
    return _sized(Item(shown(str(path)), path, found.st_size, found.st_mtime_ns))


def _tar(path: Path, found: os.stat_result) -> Iterator[Item]:
    """Members of a tar; those before a damage are read."""
    if not stat.S_ISREG(found.st_mode):
        yield _fault(path, "not a regular file", "unreadable")
        return
    compressed = not path.name.lower().endswith(".tar")
    try:
        with tarfile.open(path, "r:*" if compressed else "r:") as tar:
            for number, member in enumerate(tar):
                if member.isdir():
                    continue
                place = shown(f"{path}/{member.name}")
                item = Item(place, path, member.size, found.st_mtime_ns)
                if compressed:
                    item = replace(item, member=number)
                else:
                    item = replace(item, offset=member.offset_data)
                yield _member(item, member)
            _require_end(tar)
    except PermissionError as error:
        yield _unreadable(path, error)
    except _DAMAGES as error:
        yield _fault(path, f"damaged tar, what follows in it is lost ({error})", "tar")


def _require_end(tar: tarfile.TarFile) -> None:
    """Looks for the zeros behind the last member, which tarfile does not miss."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("no end mark where the members end")


def _contents(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Number and content of every member of a compressed tar, up to a damage."""
    try:
        with tarfile.open(path, "r|*") as tar:
            for number, member in enumerate(tar):
                structure = member.isreg() and member.name.lower().endswith(_STRUCTURE)
                file = tar.extractfile(member) if structure and member.size <= _LARGEST else None
                yield number, None if file is None else file.read()
    except _DAMAGES:
        return


def _member(item: Item, member: tarfile.TarInfo) -> Item:
    if not member.name.lower().endswith(_STRUCTURE):
        return _not_by_name(item.place, item.path)
    if not member.isreg() or member.issparse():
        return replace(item, fault="not a regular file", kind="unreadable")
    return _sized(item)


def _sized(item: Item) -> Item:
    if not 0 <= item.size <= _LARGEST:
        return replace(item, fault="larger than 4 GiB", kind="unreadable")
    return item


def _selected(item: Item, selection: Selection) -> Item:
    code = _PDB_FILE.fullmatch(Path(item.place).name)
    if item.fault or code is None or selection.has_entry(code[1].lower()):
        return item
    return replace(item, fault="not in the list of ids", kind="not listed")


def _fault(path: Path, reason: str, kind: str) -> Item:
    return Item(shown(str(path)), path, fault=reason, kind=kind)


def _unreadable(path: Path, error: OSError) -> Item:
    return _fault(path, error.strerror or str(error), "unreadable")


def _not_by_name(place: str, path: Path) -> Item:
    endings = ", ".join(SUFFIXES)
    fault = f"not a structure file by its name ({endings}, plain or .gz)"
    return Item(place, path, fault=fault, kind="name")
