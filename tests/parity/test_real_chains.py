"""Real entries against a reader of the raw mmCIF columns that shares nothing with ours.

The oracle follows the rules in the docstring of `esmfold_peft.protein.read`, one row of
`_atom_site` after the other; biotite splits the text into columns and knows the atoms of a residue.
"""

import gzip
import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import biotite.structure.info as chemistry
import biotite.structure.io.pdbx as pdbx
import numpy as np
import pytest
from Bio.Data.IUPACData import protein_letters_3to1

from esmfold_peft.protein.read import parse_chains
from esmfold_peft.protein.residues import ATOM37
from esmfold_peft.protein.structure import ProteinStructure

FILES = [
    *(f"rcsb/{code}" for code in "1a7g 1a8o 1as5 1dix 1f2n 1gbt 1igy 1k6p 1l2y 1ncb 1o1z".split()),
    *(f"rcsb/{code}" for code in "2ofg 2q2k 3jqh 3o5r 3zee 4cup 4i39 4zey 4zhl 5h73 5kc1".split()),
    *(f"rcsb/{code}" for code in "5ugo 5zng".split()),
    *(f"cameo2022/{chain}" for chain in "7mj3_A 7pl4_A 7qys_L 7snc_A".split()),
    *(f"pdb_chains/{chain}" for chain in "1aw2_A 1c54_A".split()),
]
LETTERS = {three.upper(): one for three, one in protein_letters_3to1.items()} | {"MSE": "M"}
PHENOMENA = {
    *("MSE", "X", "missing residue", "insertion code", "occupancy 0", "microheterogeneity"),
    *("alternative other than the first", "alternatives of equal occupancy", "exchanged arginine"),
    *("many models", "label and author chain differ", "nucleic acid", "cryo-EM", "NMR"),
    *("several chains", "several entities of protein"),
}

Row = dict[str, str]


@dataclass
class Expected:
    """How a chain must be read.

    Attributes:
        atoms: x, y, z and B-factor of (place in the sequence, atom).
    """

    chain: str
    entity: str
    sequence: str
    names: list[str]
    atoms: dict[tuple[int, str], list[float]]


@dataclass
class Oracle:
    """The chains of a file in its order, and how often each phenomenon occurs in it."""

    chains: list[Expected]
    seen: Counter[str] = field(default_factory=Counter)


def rows(block: pdbx.CIFBlock, category: str, *items: str) -> list[Row]:
    if category not in block:
        return []
    columns = [block[category][item].as_array(str).tolist() for item in items]
    return [dict(zip(items, values, strict=True)) for values in zip(*columns, strict=True)]


@cache
def oracle(path: Path) -> Oracle:
    with gzip.open(path, "rt") as file:
        block = pdbx.CIFFile.read(file).block
    kinds = {r["entity_id"]: r["type"] for r in rows(block, "entity_poly", "entity_id", "type")}
    sequences: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in rows(block, "entity_poly_seq", "entity_id", "num", "mon_id"):
        sequences[row["entity_id"]][int(row["num"])].append(row["mon_id"])
    atoms = rows(
        block, "atom_site", "label_asym_id", "auth_asym_id", "label_entity_id", "label_seq_id",
        "label_comp_id", "label_atom_id", "label_alt_id", "auth_seq_id", "pdbx_PDB_ins_code",
        "Cartn_x", "Cartn_y", "Cartn_z", "occupancy", "B_iso_or_equiv", "pdbx_PDB_model_num",
    )  # fmt: skip
    chains: dict[str, list[Row]] = defaultdict(list)
    for row in atoms:
        if (
            kinds.get(row["label_entity_id"]) == "polypeptide(L)"
            and row["pdbx_PDB_model_num"] == atoms[0]["pdbx_PDB_model_num"]
        ):
            chains[row["label_asym_id"]].append(row)
    found = Oracle([])
    for mine in chains.values():
        found.chains.append(read(mine, sequences[mine[0]["label_entity_id"]], found.seen))
    methods = [row["method"] for row in rows(block, "exptl", "method")]
    found.seen["many models"] = len({row["pdbx_PDB_model_num"] for row in atoms}) - 1
    found.seen["nucleic acid"] = sum("nucleotide" in kind for kind in kinds.values())
    found.seen["cryo-EM"] = methods.count("ELECTRON MICROSCOPY")
    found.seen["NMR"] = methods.count("SOLUTION NMR")
    found.seen["several chains"] = len(chains) - 1
    found.seen["several entities of protein"] = len({c.entity for c in found.chains}) - 1
    return found


def read(mine: list[Row], sequence: dict[int, list[str]], seen: Counter[str]) -> Expected:
    """One chain from its rows of the first model."""
    order = list(sequence)
    assert order == list(range(1, len(order) + 1))
    residues: dict[int, list[Row]] = defaultdict(list)
    for row in mine:
        number = int(row["label_seq_id"])
        if row["label_comp_id"] == sequence[number][0]:
            residues[number].append(row)
    expected = Expected(
        chain=mine[0]["auth_asym_id"],
        entity=mine[0]["label_entity_id"],
        sequence="".join(LETTERS.get(sequence[number][0], "X") for number in order),
        names=[""] * len(order),
        atoms={},
    )
    for number, listed in residues.items():
        code = listed[0]["pdbx_PDB_ins_code"]
        seen["insertion code"] += code not in "?."
        expected.names[number - 1] = listed[0]["auth_seq_id"] + (code if code not in "?." else "")
        for atom, values in read_residue(listed, seen).items():
            expected.atoms[number - 1, atom] = values
    seen["X"] += expected.sequence.count("X")
    seen["missing residue"] += len(order) - len(residues)
    seen["microheterogeneity"] += sum(len(set(names)) > 1 for names in sequence.values())
    seen["label and author chain differ"] += mine[0]["label_asym_id"] != expected.chain
    return expected


def read_residue(listed: list[Row], seen: Counter[str]) -> dict[str, list[float]]:
    """The atoms of one residue: one conformer, the names of the twenty amino acids."""
    name = listed[0]["label_comp_id"]
    resolved = [row for row in listed if float(row["occupancy"]) > 0]
    seen["occupancy 0"] += len(listed) - len(resolved)
    if name not in LETTERS:
        return {}
    seen["MSE"] += name == "MSE"
    chosen = alternative(resolved, seen)
    found: dict[str, list[float]] = {}
    for row in resolved:
        if row["label_alt_id"] in (".", "?", chosen):
            atom = row["label_atom_id"]
            atom = "SD" if (name, atom) == ("MSE", "SE") else atom
            if atom in heavy_atoms("MET" if name == "MSE" else name):
                columns = ("Cartn_x", "Cartn_y", "Cartn_z", "B_iso_or_equiv")
                found.setdefault(atom, [float(row[column]) for column in columns])
    if name == "ARG" and {"CD", "NH1", "NH2"} <= found.keys():
        cd, nh1, nh2 = (found[atom][:3] for atom in ("CD", "NH1", "NH2"))
        if math.dist(cd, nh2) < math.dist(cd, nh1):
            found["NH1"], found["NH2"] = found["NH2"], found["NH1"]
            seen["exchanged arginine"] += 1
    return found


def alternative(resolved: list[Row], seen: Counter[str]) -> str | None:
    """The alternative of highest summed occupancy, the first of equals; None without any."""
    total: dict[str, float] = {}
    for row in resolved:
        if row["label_alt_id"] not in "?.":
            total[row["label_alt_id"]] = total.get(row["label_alt_id"], 0.0) + float(
                row["occupancy"]
            )
    if not total:
        return None
    highest = max(total.values())
    # Sums of decimal fractions: equal means equal to the last digit that a file gives.
    best = [name for name, value in total.items() if value > highest - 1e-4]
    seen["alternatives of equal occupancy"] += len(best) > 1
    seen["alternative other than the first"] += best[0] != next(iter(total))
    return best[0]


@cache
def heavy_atoms(residue: str) -> frozenset[str]:
    """Names from the chemical component dictionary that biotite carries, OXT among them."""
    atoms = chemistry.residue(residue)
    return frozenset(atoms.atom_name[~np.isin(atoms.element, ["H", "D"])].tolist())


def atoms_read(structure: ProteinStructure) -> dict[tuple[int, str], np.ndarray]:
    values = np.concatenate([structure.positions, structure.b_factors[..., None]], axis=-1)
    return {
        (int(place), ATOM37[column]): values[place, column]
        for place, column in np.argwhere(structure.atom_mask)
    }


def structure_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.cif.gz"


@pytest.mark.parametrize("name", FILES)
def test_chains_are_read_as_the_rules_say(shared_structures: Path, name: str) -> None:
    path = structure_file(shared_structures, name)
    expected = oracle(path).chains
    chains = parse_chains(path.read_bytes(), str(path))
    assert [chain.chain for chain in chains] == [chain.chain for chain in expected]
    for ours, theirs in zip(chains, expected, strict=True):
        assert ours.entity == theirs.entity
        assert ours.sequence == theirs.sequence
        assert ours.residue_index.tolist() == list(range(len(theirs.sequence)))
        assert ours.residue_names == tuple(theirs.names)
        read = atoms_read(ours)
        assert read.keys() == theirs.atoms.keys()
        # Both are the decimal number in the file, rounded once to float32.
        np.testing.assert_array_equal(
            np.array([read[atom] for atom in theirs.atoms]),
            np.array(list(theirs.atoms.values()), dtype=np.float32),
        )


def test_the_chains_cover_every_phenomenon(shared_structures: Path) -> None:
    found = [oracle(structure_file(shared_structures, name)) for name in FILES]
    assert sum(len(file.chains) for file in found) >= 40
    assert all(chain.atoms for file in found for chain in file.chains)
    seen = sum((file.seen for file in found), Counter[str]())
    assert {name for name, count in seen.items() if count > 0} == PHENOMENA
