"""Every broken file is refused in one line that names it and says why."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import gemmi
import pytest

from esmfold_peft.errors import UserError
from esmfold_peft.protein.read import read_chains, read_structure

CUT_LOOP = "data_x\nloop_\n_atom_site.id\n_atom_site.label_atom_id\n1 N 2\n"
NO_ATOMS = "data_x\n_entry.id X\n_cell.length_a 1\n"
EMPTY_LOOP = "data_x\nloop_\n_atom_site.id\n_atom_site.label_atom_id\n"
PAGE = "<!DOCTYPE html><html><body>404 Not Found</body></html>\n"
SHORT_ATOM = "ATOM      1  N   GLY A   1      11.104\n"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.cif", b"", "the file is empty"),
        ("blank.pdb", b" \n\n", "the file is empty"),
        ("empty.cif.gz", gzip.compress(b"", mtime=0), "the file is empty"),
        ("page.cif", PAGE.encode(), "neither mmCIF nor PDB"),
        ("proteins.fasta", b">a\nMKV\n", "neither mmCIF nor PDB"),
        ("binary.cif", bytes(range(256)), "neither mmCIF nor PDB"),
        ("cut.cif", CUT_LOOP.encode(), r"not a valid coordinate file \(.*number of values.*\)"),
        ("none.cif", NO_ATOMS.encode(), "no coordinates"),
        ("loop.cif", EMPTY_LOOP.encode(), r"not a valid coordinate file|no coordinates"),
        ("header.pdb", b"HEADER    PROTEIN                   01-JAN-20   1ABC\nEND\n", "no coord"),
        ("short.pdb", SHORT_ATOM.encode(), r"not a valid coordinate file \(.*\)"),
    ],
)
def test_broken_content(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: ({reason})[^\n]*$"):
        read_chains(path)


@pytest.mark.parametrize(
    "cut", [lambda d: d[: len(d) // 2], lambda d: d[:2000] + b"xxxx" + d[2004:]]
)
def test_damaged_gzip(mmcifs: Path, tmp_path: Path, cut: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "damaged.cif.gz"
    path.write_bytes(cut(gzip.compress((mmcifs / "1ubq.cif").read_bytes(), mtime=0)))
    with pytest.raises(UserError, match=r"damaged\.cif\.gz: damaged gzip file \(.+\)$"):
        read_structure(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.cif: No such file"):
        read_structure(tmp_path / "absent.cif")
    with pytest.raises(UserError, match="Is a directory"):
        read_structure(tmp_path)


def test_unknown_chain_lists_the_protein_chains(mmcifs: Path) -> None:
    path = mmcifs / "2q2k.cif"
    with pytest.raises(UserError, match=r'2q2k\.cif: no protein chain "F" \(the file has A, B\)$'):
        read_structure(path, "F")  # F is DNA


def test_nucleic_acid_alone_is_no_protein(mmcifs: Path, tmp_path: Path) -> None:
    structure = gemmi.read_structure(str(mmcifs / "2q2k.cif"))
    for name in ("A", "B"):
        structure[0].remove_chain(name)
    path = tmp_path / "dna.cif"
    structure.make_mmcif_document().write_file(str(path))
    with pytest.raises(UserError, match=r"dna\.cif: no protein chain$"):
        read_chains(path)
