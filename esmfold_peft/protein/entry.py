"""A coordinate file, mmCIF or PDB, opened with gemmi: its models, and what it says of itself.

gemmi is a C++ parser, many times faster than one written in Python.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

import gemmi

from esmfold_peft.errors import UserError
from esmfold_peft.protein.files import read_bytes

_CIF = re.compile(rb"^data_", re.MULTILINE | re.IGNORECASE)
_PDB = re.compile(rb"^(HEADER|ATOM  |HETATM|CRYST1|MODEL )", re.MULTILINE)
_PDB_FIRST_RELEASE = re.compile(rb"^REVDAT   1   (\d\d-[A-Z]{3}-\d\d)", re.MULTILINE)
_RESOLUTION_TAGS = ("_refine.ls_d_res_high", "_em_3d_reconstruction.resolution")
# The second is the name that entries had before version 5 of the archive's dictionary.
_RELEASE_TAGS = ("_pdbx_audit_revision_history.revision_date", "_database_PDB_rev.date")
_SUFFIXES = (".gz", ".cif", ".mmcif", ".pdb", ".ent")


@dataclass(frozen=True, eq=False)
class Entry:
    """A file with coordinates.

    Attributes:
        path: where it was read from.
        name: the entry's id as the file states it, otherwise the file name without its endings.
        structure: every model and entity, with label numbers, assigned by alignment to SEQRES where
            the file has none.
        resolution: Å, of diffraction or cryo-EM; None if unknown or if the method is NMR.
        method: as the file states it, several joined by "; "; None if unknown.
        release_date: oldest revision; None if unknown.
    """

    path: Path
    name: str
    structure: gemmi.Structure
    resolution: float | None
    method: str | None
    release_date: date | None


def open_entry(path: Path) -> Entry:
    """Parses an mmCIF or PDB file, plain or gzip-compressed; the content decides, not the name.

    Raises:
        UserError: the file cannot be read, is neither mmCIF nor PDB, is damaged, or holds no
            coordinates.
    """
    data = read_bytes(path)
    try:
        if _CIF.search(data):
            entry = _open_mmcif(path, data)
        elif _PDB.search(data):
            entry = _open_pdb(path, data)
        else:
            raise UserError(f"{path}: neither mmCIF nor PDB")
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a valid coordinate file ({reason})") from error
    if len(entry.structure) == 0 or entry.structure[0].count_atom_sites() == 0:
        raise UserError(f"{path}: no coordinates")
    _complete(entry.structure)
    return entry


def _open_mmcif(path: Path, data: bytes) -> Entry:
    blocks = gemmi.cif.read_string(data)
    with_atoms = [block for block in blocks if block.find_loop("_atom_site.id")]
    block = with_atoms[0] if with_atoms else blocks[0]
    method = "; ".join(_values(block, "_exptl.method")) or None
    return Entry(
        path=path,
        name=next(_values(block, "_entry.id"), _stem(path)),
        structure=gemmi.make_structure_from_block(block),
        resolution=_resolution(
            method, (v for tag in _RESOLUTION_TAGS for v in _values(block, tag))
        ),
        method=method,
        release_date=_oldest(block),
    )


def _open_pdb(path: Path, data: bytes) -> Entry:
    structure = gemmi.read_pdb_string(data)
    info = dict(structure.info)
    method = info.get("_exptl.method")
    first_release = _PDB_FIRST_RELEASE.search(data)
    return Entry(
        path=path,
        name=info.get("_entry.id", _stem(path)),
        structure=structure,
        resolution=_resolution(method, iter([str(structure.resolution)])),
        method=method,
        release_date=_pdb_date(first_release[1].decode()) if first_release else None,
    )


def _complete(structure: gemmi.Structure) -> None:
    """Fills in what some files leave out: polymer types, label chains, and positions in SEQRES."""
    structure.merge_chain_parts()
    structure.setup_entities()
    structure.assign_label_seq_id()


def _values(block: gemmi.cif.Block, tag: str) -> Iterator[str]:
    """The values of an item, unquoted, without the unknown ("?") and the inapplicable (".")."""
    return (gemmi.cif.as_string(v) for v in block.find_values(tag) if not gemmi.cif.is_null(v))


def _resolution(method: str | None, values: Iterator[str]) -> float | None:
    if method is not None and "NMR" in method.upper():
        return None
    numbers = (gemmi.cif.as_number(value) for value in values)
    return next((number for number in numbers if number > 0), None)


def _oldest(block: gemmi.cif.Block) -> date | None:
    dates = [date.fromisoformat(v) for tag in _RELEASE_TAGS for v in _values(block, tag)]
    return min(dates, default=None)


def _pdb_date(text: str) -> date:
    """Reads dd-MMM-yy; years from 69 on are of the twentieth century."""
    return datetime.strptime(text, "%d-%b-%y").date()


def _stem(path: Path) -> str:
    name = path.name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name
