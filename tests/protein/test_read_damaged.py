"""Whatever happens to a file, it is read or refused in one line."""

import random
import re
from collections.abc import Callable
from pathlib import Path

import gemmi
import numpy as np
import pytest

from esmfold_peft.errors import UserError
from esmfold_peft.protein.read import parse_chains, read_structure
from esmfold_peft.protein.structure import ProteinStructure
from esmfold_peft.protein.write import to_mmcif, to_pdb

WORDS = (
    b"99999999999999999999 -2147483648 2147483647 1e300 -1e400 nan 0 -1 ? . ' \" ; # _ loop_ data_ "
    b"\xff \xc3 \xc3\xa9 LONGER_THAN_EIGHT A\x00B \x1c"
).split(b" ")


def cut(data: bytes, choose: random.Random) -> bytes:
    return data[: choose.randrange(len(data))]


def change_bytes(data: bytes, choose: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(choose.choice([1, 10, 100])):
        changed[choose.randrange(len(data))] = choose.choice([0, 32, 10, choose.randrange(256)])
    return bytes(changed)


def delete_lines(data: bytes, choose: random.Random) -> bytes:
    lines = data.split(b"\n")
    for _ in range(choose.choice([1, 10])):
        del lines[choose.randrange(len(lines))]
    return b"\n".join(lines)


def repeat_part(data: bytes, choose: random.Random) -> bytes:
    start, end = sorted(choose.randrange(len(data)) for _ in range(2))
    return data[:end] + data[start:]


def replace_words(data: bytes, choose: random.Random) -> bytes:
    lines = data.split(b"\n")
    for _ in range(choose.choice([1, 30])):
        place = choose.randrange(len(lines))
        words = lines[place].split(b" ")
        words[choose.randrange(len(words))] = choose.choice(WORDS)
        lines[place] = b" ".join(words)
    return b"\n".join(lines)


def replace_column(data: bytes, choose: random.Random) -> bytes:
    word, column = choose.choice(WORDS), choose.randrange(1, 20)
    lines = data.split(b"\n")
    for place, line in enumerate(lines):
        words = line.split()
        if line.startswith((b"ATOM", b"HETATM")) and column < len(words):
            lines[place] = b" ".join([*words[:column], word, *words[column + 1 :]])
    return b"\n".join(lines)


DAMAGES = [cut, change_bytes, delete_lines, repeat_part, replace_words, replace_column]


@pytest.fixture(scope="module")
def sources(mmcifs: Path) -> list[bytes]:
    """Small entries as deposited, and as we and gemmi write them."""
    paths = [mmcifs / f"{entry}.cif" for entry in ("1kd8", "2q2k", "3zee", "4zey")]
    structure = read_structure(paths[-1])
    written = [to_pdb(structure), to_mmcif(structure)]
    written += [gemmi.read_structure(str(path)).make_pdb_string() for path in paths[:2]]
    return [*(path.read_bytes() for path in paths), *(text.encode() for text in written)]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_read_or_refused(
    sources: list[bytes], damage: Callable[[bytes, random.Random], bytes]
) -> None:
    outcomes = [
        # A string seeds alike in every process.
        outcome(damage(data, random.Random(f"{damage.__name__} {number} {seed}")))
        for number, data in enumerate(sources)
        for seed in range(25)
    ]
    messages = [message for message in outcomes if isinstance(message, str)]
    assert all(re.fullmatch(r"place: .{1,250}", message) for message in messages), messages
    chains = [chain for chains in outcomes if not isinstance(chains, str) for chain in chains]
    assert messages
    assert chains
    for chain in chains:
        assert chain.id.isprintable()
        assert np.isfinite(chain.positions).all()
        assert np.isfinite(chain.b_factors).all()


def outcome(data: bytes) -> list[ProteinStructure] | str:
    try:
        return parse_chains(data, "place")
    except UserError as error:
        return str(error)


def atom_rows(text: str, edit: Callable[[list[str]], None]) -> bytes:
    """An mmCIF file of which each row of atoms is edited as a list of words."""
    lines = text.split("\n")
    for place, line in enumerate(lines):
        if line.startswith(("ATOM", "HETATM")):
            words = line.split()
            edit(words)
            lines[place] = " ".join(words)
    return "\n".join(lines).encode()


@pytest.fixture
def written(mmcifs: Path) -> str:
    return to_mmcif(read_structure(mmcifs / "1ubq.cif"))


def column(text: str, item: str) -> int:
    items = re.findall(r"(?m)^_atom_site\.(\S+)", text)
    return items.index(item)


@pytest.mark.parametrize("number", ["0", "-1", "-77", "77", "2147483647"])
def test_places_outside_the_sequence_are_found_by_alignment(written: str, number: str) -> None:
    place = column(written, "label_seq_id")
    (read,) = parse_chains(
        atom_rows(written, lambda words: words.__setitem__(place, number)), "place"
    )
    (expected,) = parse_chains(written.encode(), "place")
    assert read.sequence == expected.sequence
    np.testing.assert_array_equal(read.positions, expected.positions)
    assert read.residue_names == expected.residue_names


@pytest.mark.parametrize("axis", ["Cartn_x", "Cartn_y", "Cartn_z"])
@pytest.mark.parametrize("value", ["?", ".", "1e300", "-1e20", "1e6"])
def test_an_atom_without_a_place_is_not_resolved(written: str, axis: str, value: str) -> None:
    place, name = column(written, axis), column(written, "label_atom_id")

    def edit(words: list[str]) -> None:
        if words[name] == "CA":
            words[place] = value

    (read,) = parse_chains(atom_rows(written, edit), "place")
    assert not read.atom_mask[:, 1].any()
    assert read.atom_mask[:, [0, 2]].all()
    assert (read.positions[:, 1] == 0).all()
    far = "76 atoms are left out, farther than 1,000,000 Å from the origin"
    assert read.notes == (() if value in ("?", ".") else (far,))


def test_a_b_factor_that_is_no_number_is_0(written: str) -> None:
    place = column(written, "B_iso_or_equiv")
    (read,) = parse_chains(
        atom_rows(written, lambda words: words.__setitem__(place, "high")), "place"
    )
    assert read.atom_mask.any()
    assert (read.b_factors == 0).all()


def test_a_title_in_another_encoding_does_no_harm(mmcifs: Path) -> None:
    text = gemmi.read_structure(str(mmcifs / "1ubq.cif")).make_pdb_string()
    data = text.encode().replace(b"TITLE     STRUCTURE", b"TITLE     STR\xdcCTURE")
    assert b"\xdc" in data
    assert parse_chains(data, "place")[0].id == "1ubq_A"


@pytest.mark.parametrize(
    ("name", "reason"),
    [(b"\xc4", "not a valid .*utf-8.*"), (b"\x1c", r"chain name '\\x1c' is not .*")],
)
def test_a_chain_name_that_is_no_text_is_refused(mmcifs: Path, name: bytes, reason: str) -> None:
    lines = gemmi.read_structure(str(mmcifs / "1ubq.cif")).make_pdb_string().encode().split(b"\n")
    column_of = {b"ATOM  ": 21, b"HETATM": 21, b"SEQRES": 11}
    for place, line in enumerate(lines):
        at = column_of.get(line[:6])
        if at is not None:
            lines[place] = line[:at] + name + line[at + 1 :]
    with pytest.raises(UserError, match=f"^place: {reason}$"):
        parse_chains(b"\n".join(lines), "place")
