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
_LARGEST = 4 << 30
_DAMAGES = (
    *(tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError),
    *(OverflowError, MemoryError),  # a damaged header may state any number of bytes
)
_PDB_FILE = re.compile(r"(?:pdb)?([0-9][a-z0-9]{3})(?:[._-].*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Item:
    """One file to read, or a file that is not read and why.

    Attributes:
        place: its name in reports: a path, or "<tar>/<member>"; printable.
        path: the file on disk; of a member, the tar.
        size: bytes.
        stamp: time of the last change of `path`, in ns.
        offset: first byte of a member in a plain tar.
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
"""A file; the content of a member of a compressed tar, which is read once from its beginning."""


def list_items(
    sources: tuple[Path, ...], selection: Selection | None, store: Path | None = None
) -> list[Item]:
    """Every file of the sources (files, folders, tars), in their order and sorted inside folders.

    With a selection, files are not read if their names are PDB codes of other entries. The folder
    of the store that is being made is skipped.

    Raises:
        UserError: a source does not exist, or is the store.
    """
    skipped = {_identity(store.stat())} if store and os.path.isdir(store) else set()
    items = [item for source in sources for item in _items(source, skipped)]
    return items if selection is None else [_selected(item, selection) for item in items]


def load(items: Iterable[Item]) -> Iterator[Loaded]:
    """Gives members of compressed tars their content; other files have None.

    The members of a tar follow one another, so that it is read once.
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
    """Divides sources into structures and lists of ids (.txt); a UserError if all are lists."""
    lists = tuple(source for source in sources if source.suffix.lower() == ".txt")
    others = tuple(source for source in sources if source not in lists)
    if not others:
        advice = "name the files or folders with the structures too"
        raise UserError(f"{sources[0]}: a list of ids; {advice}")
    return others, lists


def shown(name: str) -> str:
    """A name without characters that end a line or cannot be written as UTF-8."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _items(source: Path, skipped: set[tuple[int, int]]) -> Iterator[Item]:
    try:
        found = source.stat()
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}") from error
    if _identity(found) in skipped:
        raise UserError(f"{source}: is a source and the output; choose another folder as output")
    if source.is_dir():
        yield from _folder(source, skipped)
    elif source.name.lower().endswith(_TAR):
        yield from _tar(source)
    else:
        yield _file(source)  # the user named it: its ending does not matter


def _folder(folder: Path, skipped: set[tuple[int, int]]) -> Iterator[Item]:
    """Files below a folder, links followed, by name."""
    unreadable: list[OSError] = []
    visited = set(skipped)
    for parent, folders, names in os.walk(folder, onerror=unreadable.append, followlinks=True):
        folders.sort()
        try:
            here = _identity(os.stat(parent))
        except OSError as error:  # it is gone, or its folder has no permission to enter
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
            # Programs that fetch structures keep unfinished files under such names.
            if hidden or name.startswith("."):
                yield _fault(path, "a hidden file, or in a hidden folder", "name")
            else:
                yield from _inside(path)
    for error in unreadable:
        yield _unreadable(Path(error.filename), error)


def _inside(path: Path) -> Iterator[Item]:
    name = path.name.lower()
    if name.endswith(_TAR):
        yield from _tar(path)
    elif name.endswith(_STRUCTURE):
        yield _file(path)
    else:
        yield _not_by_name(shown(str(path)), path)


def _file(path: Path, *, limited: bool = True) -> Item:
    try:
        found = path.stat()
    except OSError as error:
        return _unreadable(path, error)
    if not stat.S_ISREG(found.st_mode):
        return _fault(path, "not a regular file", "unreadable")
    item = Item(shown(str(path)), path, found.st_size, found.st_mtime_ns)
    return _sized(item) if limited else item


def _tar(path: Path) -> Iterator[Item]:
    """Members of a tar; those before a damage are read."""
    whole = _file(path, limited=False)
    if whole.fault:
        yield whole
        return
    compressed = not path.name.lower().endswith(".tar")
    try:
        with tarfile.open(path, "r:*" if compressed else "r:") as tar:
            for number, member in enumerate(tar):
                if member.isdir():
                    continue
                place = shown(f"{path}/{member.name}")
                at = (None, number) if compressed else (member.offset_data, None)
                item = Item(place, path, member.size, whole.stamp, *at)
                if not member.name.lower().endswith(_STRUCTURE):
                    item = _not_by_name(place, path)
                elif not member.isreg() or member.issparse():
                    item = replace(item, fault="not a regular file", kind="unreadable")
                yield item if item.fault else _sized(item)
            # tarfile does not notice that the zeros behind the last member are missing.
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("no end mark where the members end")
    except PermissionError as error:
        yield _unreadable(path, error)
    except _DAMAGES as error:
        yield _fault(path, f"damaged tar, the files after the damage are lost ({error})", "tar")


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
    fault = f"not a structure file by its name ({', '.join(SUFFIXES)}, plain or .gz)"
    return Item(place, path, fault=fault, kind="name")
