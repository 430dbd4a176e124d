"""The example chains are what `data/README.md` says of them."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from Bio.Align import PairwiseAligner, substitution_matrices

from esmfold_peft.protein.fasta import read_fasta
from esmfold_peft.protein.read import read_chains
from esmfold_peft.protein.structure import ProteinStructure

FULL_ATOM = {"1ubq_A", "3u8v_A", "4i6p_A", "4zey_A", "1hf9_A", "1psm_A", "1lcd_A", "1kd8_A"}


@pytest.fixture(scope="module")
def chains(example: Path) -> dict[str, ProteinStructure]:
    found = {}
    for path in sorted(example.glob("*/*.cif.gz")):
        (structure,) = read_chains(path)
        assert f"{structure.id}.cif.gz" == path.name
        found[structure.id] = structure
    return found


def test_the_readme_names_every_chain_with_its_folder(example: Path) -> None:
    text = (example.parent / "README.md").read_text()
    for folder in ("train", "held_out", "full_atom"):
        backbone = re.findall(rf"^\| `{folder}` \| (.+) \|$", text, re.MULTILINE)
        assert len(backbone) == (folder != "full_atom")
        names = re.findall(r"(\w{4}_\w) \(", "".join(backbone))
        names += re.findall(rf"^\| (\w{{4}}_\w) \| `{folder}` \|", text, re.MULTILINE)
        files = [path.name.split(".")[0] for path in (example / folder).glob("*.cif.gz")]
        assert sorted(names) == sorted(files)


def test_there_are_thirty_four_chains_of_36_to_96_residues(
    chains: dict[str, ProteinStructure], example: Path
) -> None:
    lengths = np.array([len(chain) for chain in chains.values()])
    assert len(lengths) == 34
    assert lengths.min() == 36
    assert lengths.max() <= 96
    assert (lengths <= 60).sum() == 16
    assert sum(path.stat().st_size for path in example.rglob("*") if path.is_file()) < 1_000_000


def test_eight_chains_have_side_chains_and_the_others_a_whole_backbone(
    chains: dict[str, ProteinStructure],
) -> None:
    for name, chain in chains.items():
        per_residue = chain.atom_mask.sum(-1)
        if name in FULL_ATOM:
            assert per_residue[per_residue > 0].mean() > 7
            assert (chain.resolution is None) == (chain.method == "SOLUTION NMR")
            assert chain.release_date is not None
        else:
            assert set(per_residue.tolist()) <= {4, 5}
            assert chain.atom_mask[:, :3].all()
            bonds = np.linalg.norm(chain.positions[1:, 0] - chain.positions[:-1, 2], axis=-1)
            assert bonds.max() < 1.6  # C to N of the next: unbroken


def identity(one: str, other: str) -> float:
    aligner = PairwiseAligner(
        substitution_matrix=substitution_matrices.load("BLOSUM62"),
        open_gap_score=-10, extend_gap_score=-0.5, end_gap_score=0,
    )  # fmt: skip
    return aligner.align(one, other)[0].counts().identities / min(len(one), len(other))


def test_no_two_chains_are_more_than_forty_percent_identical(
    chains: dict[str, ProteinStructure],
) -> None:
    sequences = [chain.sequence for chain in chains.values()]
    assert all(identity(*pair) < 0.40 for pair in combinations(sequences, 2))


def test_the_family_has_eighteen_domains_to_train_and_twelve_unlike_them(example: Path) -> None:
    train, held_out = (
        [read_chains(path)[0].sequence for path in (example.parent / "sh3" / part).iterdir()]
        for part in ("train", "held_out")
    )
    assert (len(train), len(held_out)) == (18, 12)
    assert {len(sequence) for sequence in train + held_out} <= set(range(56, 80))
    assert max(identity(one, other) for one in train for other in held_out) <= 0.50


def test_the_fasta_holds_four_of_the_chains_and_two_others(
    chains: dict[str, ProteinStructure], example: Path
) -> None:
    records = {record.id: record.sequence for record in read_fasta([example / "sequences.fasta"])}
    known = {name for name in records if name in chains}
    assert known == {"1ubq_A", "3dxs_A", "4qiv_C", "4wsz_B"}
    assert all(records[name] == chains[name].sequence for name in known)
    assert all(40 <= len(sequence) <= 100 for sequence in records.values())
    assert len(records) == 6
