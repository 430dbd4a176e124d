"""Chains from the content of a file, which need not be a file of its own."""

import gzip
import random
import re
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import gemmi
import numpy as np
import pytest

from esmfold_peft.disk import files
from esmfold_peft.errors import UserError
from esmfold_peft.protein.read import parse_chains, read_chains, read_structure
from esmfold_peft.protein.structure import ProteinStructure

PLACE = "folder/shard.tar/1abc_A.cif.gz"
MIB = 1 << 20


def assert_equal(a: ProteinStructure, b: ProteinStructure) -> None:
    for field in fields(ProteinStructure):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))


def pdb_text(path: Path) -> str:
    return gemmi.read_structure(str(path)).make_pdb_string()


@pytest.mark.parametrize("entry", ["1ubq", "2q2k"])
def test_compressed_content_is_read_like_a_plain_file(mmcifs: Path, entry: str) -> None:
    path = mmcifs / f"{entry}.cif"
    read = parse_chains(gzip.compress(path.read_bytes(), mtime=0), PLACE)
    for ours, expected in zip(read, read_chains(path), strict=True):
        assert_equal(ours, expected)


def test_the_content_decides_what_it_is_not_the_place(mmcifs: Path) -> None:
    text = pdb_text(mmcifs / "1ubq.cif")
    for data in (text.encode(), gzip.compress(text.encode(), mtime=0)):
        (read,) = parse_chains(data, PLACE)
        assert read.id == "1ubq_A"
        assert read.sequence == read_structure(mmcifs / "1ubq.cif").sequence


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("shard.tar/1abc_A.cif.gz", "1abc_A"),
        ("models/my.model.cif", "my.model"),
        ("1abc.ent", "1abc_A"),
    ],
)
def test_an_unnamed_entry_is_named_after_the_last_part_of_its_place(
    mmcifs: Path, place: str, expected: str
) -> None:
    text = re.sub(r"(?m)^_entry\.id .*\n", "", (mmcifs / "1ubq.cif").read_text())
    assert parse_chains(text.encode(), place)[0].id == expected


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (gzip.compress(b"\n", mtime=0), "the file is empty"),
        (gzip.compress(b"data_x\n", mtime=0)[:-9], r"damaged gzip file \(.+\)"),
        (b"data_x\n_a.b 'cut", r"not a valid coordinate file \(.+\)"),
        (b"data_" + b"x" * MIB + b"\ndata_" + b"x" * MIB, r"not a valid .{,250}"),
        (b"data_x\n_entry.id\n;two\nlines\n;\n", r"the entry's id 'two\\nlines' is not printable"),
    ],
)
def test_messages_name_the_place_in_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(PLACE)}: {reason}$"):
        parse_chains(data, PLACE)


@pytest.mark.parametrize(
    "content",
    [
        lambda: random.Random(0).randbytes(50 * MIB),
        lambda: b"A" * (10 * MIB),
        lambda: b"\n" * (50 * MIB) + b"x",
        lambda: b"\ndata" * (10 * MIB),
    ],
    ids=["noise", "one line", "many lines", "nearly mmCIF"],
)
def test_what_is_no_coordinate_file_is_refused_at_once(content: Callable[[], bytes]) -> None:
    data = content()
    start = time.process_time()
    with pytest.raises(UserError, match=r"neither mmCIF nor PDB$"):
        parse_chains(data, PLACE)
    assert time.process_time() - start < 30  # what looks at every place anew takes minutes


@pytest.mark.parametrize("members", [1, 8])
def test_gzip_that_expands_too_far_is_refused_without_being_held(
    monkeypatch: pytest.MonkeyPatch, members: int
) -> None:
    data = gzip.compress(bytes(64 * MIB // members), mtime=0) * members
    monkeypatch.setattr(files, "_MOST_BYTES", MIB)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=f"^{PLACE}: expands to more than . GiB$"):
            parse_chains(data, PLACE)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_gzip_that_just_fits_is_read(monkeypatch: pytest.MonkeyPatch, mmcifs: Path) -> None:
    data = (mmcifs / "1ubq.cif").read_bytes()
    monkeypatch.setattr(files, "_MOST_BYTES", len(data))
    assert len(parse_chains(gzip.compress(data, mtime=0), PLACE)) == 1
    monkeypatch.setattr(files, "_MOST_BYTES", len(data) - 1)
    with pytest.raises(UserError, match="expands to more than"):
        parse_chains(gzip.compress(data, mtime=0), PLACE)


def test_the_limit_of_expansion() -> None:
    assert files._MOST_BYTES == 4 * 1024**3


def test_the_entity_is_the_one_that_the_file_states(mmcifs: Path) -> None:
    chains = read_chains(mmcifs / "2q2k.cif")
    assert [chain.entity for chain in chains] == ["2", "2"]  # entity 1 is DNA


def test_a_pdb_file_states_no_entity(mmcifs: Path) -> None:
    (read,) = parse_chains(pdb_text(mmcifs / "1ubq.cif").encode(), "1ubq.pdb")
    assert read.entity is None


def test_an_mmcif_file_may_state_no_entity(mmcifs: Path) -> None:
    document = gemmi.cif.read(str(mmcifs / "1ubq.cif"))
    document[0].find_loop("_atom_site.label_entity_id").get_loop().remove_column(
        "_atom_site.label_entity_id"
    )
    (read,) = parse_chains(document.as_string().encode(), PLACE)
    assert read.entity is None
    assert read.sequence == read_structure(mmcifs / "1ubq.cif").sequence


def test_entities_of_equal_sequence_remain_two() -> None:
    chains = parse_chains(twins().encode(), "twins.cif")
    assert [(chain.chain, chain.sequence, chain.entity) for chain in chains] == [
        ("A", "GGG", "1"),
        ("B", "GGG", "heavy chain"),
    ]


def twins() -> str:
    """Two entities of the same sequence; the name of the second is a quoted one."""
    lines = ["data_twins", "loop_", "_entity.id", "_entity.type", "1 polymer"]
    lines += ["'heavy chain' polymer", "loop_", "_entity_poly.entity_id", "_entity_poly.type"]
    lines += ["1 polypeptide(L)", "'heavy chain' polypeptide(L)", "loop_"]
    lines += ["_entity_poly_seq.entity_id", "_entity_poly_seq.num", "_entity_poly_seq.mon_id"]
    lines += [f"{e} {n} GLY" for e in ("1", "'heavy chain'") for n in (1, 2, 3)]
    items = (
        "id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_entity_id "
        "label_seq_id Cartn_x Cartn_y Cartn_z"
    )
    lines += ["loop_", *(f"_atom_site.{item}" for item in items.split())]
    for chain, entity in (("A", "1"), ("B", "'heavy chain'")):
        lines += [f"{n} C CA . GLY {chain} {entity} {n} {n}.0 2.0 3.0" for n in (1, 2, 3)]
    return "\n".join(lines) + "\n"
