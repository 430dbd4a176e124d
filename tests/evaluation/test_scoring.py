"""The scores of one pair: what they are of, and what leaves them alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from esmfold_peft.datasets.features import features
from esmfold_peft.evaluation.chain import from_features, from_structure
from esmfold_peft.evaluation.pairing import Pair
from esmfold_peft.evaluation.scoring import SCORED, WITHOUT_PLACE, Scored, score_pair
from esmfold_peft.evaluation.sides import InFile
from esmfold_peft.preparation.sources import list_items
from esmfold_peft.protein.read import read_structure
from esmfold_peft.protein.structure import ProteinStructure
from tests.evaluation.predictions import prediction, reference, write

TRUE = reference("1psm_A", "full_atom")
CASES = Path(__file__).parents[1] / "cases"


def in_file(path: Path) -> InFile:
    return InFile(list_items((path,), None)[0])


def scored(predicted: Path, true: Path = TRUE, match="auto") -> Scored:
    pair = Pair("x", "", in_file(predicted), in_file(true), str(predicted), str(true))
    return score_pair(pair, match, per_residue=True)


def reason(predicted: Path, true: Path = TRUE) -> str:
    result = scored(predicted, true)
    assert result.row.lddt_ca is result.row.plddt is result.calibration is None
    return result.row.status


def without(structure: ProteinStructure, atoms: tuple) -> ProteinStructure:
    mask = structure.atom_mask.copy()
    mask[atoms] = False
    return replace(structure, atom_mask=mask)


def test_a_reference_against_itself_is_perfect():
    row = scored(TRUE).row
    assert row.status == SCORED
    assert row.lddt_ca == row.lddt_ca_residue_mean == row.lddt_all_atom == 1
    assert row.gdt_ts == row.gdt_ha == pytest.approx(1)
    assert row.tm_score == pytest.approx(1)
    assert row.rmsd == pytest.approx(0, abs=1e-5)
    assert (row.match, row.identity, row.matched) == ("sequence", 1, row.resolved)
    assert row.plddt is None  # B-factors of an experiment


def test_scores_do_not_know_how_a_prediction_lies(tmp_path: Path):
    one = write(tmp_path / "a.pdb", prediction(TRUE, 0.8, seed=3))
    moved = prediction(TRUE, 0.8, seed=3)
    turned = np.where(moved.atom_mask[..., None], moved.positions @ np.diag([-1, -1, 1]) - 30, 0)
    other = write(tmp_path / "b.pdb", replace(moved, positions=turned.astype(np.float32)))
    a, b = scored(one).row, scored(other).row
    assert 0.5 < a.lddt_ca < 0.95
    for name in ("lddt_ca", "lddt_all_atom", "rmsd", "gdt_ts", "gdt_ha", "tm_score", "plddt"):
        # Files round to 0.001 Å.
        assert getattr(a, name) == pytest.approx(getattr(b, name), abs=2e-3), name


def test_what_a_prediction_lacks_is_lost_and_what_the_reference_lacks_is_masked(tmp_path: Path):
    half = len(read_structure(TRUE)) // 2
    part = slice(half, None), slice(None)
    lacking = write(tmp_path / "lacking.pdb", without(prediction(TRUE), part))
    row = scored(lacking).row
    assert row.matched == half
    assert row.lddt_ca < 0.6
    assert row.gdt_ts == pytest.approx(half / row.resolved, abs=0.01)
    assert row.rmsd == pytest.approx(0, abs=2e-3)
    masked = write(tmp_path / "masked.pdb", without(read_structure(TRUE), part))
    row = scored(write(tmp_path / "whole.pdb", prediction(TRUE)), masked).row
    assert (row.length, row.resolved, row.matched) == (2 * half + row.length % 2, half, half)
    assert row.lddt_ca == row.lddt_all_atom == 1
    assert row.gdt_ts == pytest.approx(1)


def test_the_residues_are_those_of_the_reference(tmp_path: Path):
    lacking = without(prediction(TRUE), (slice(0, 3), slice(None)))
    result = scored(write(tmp_path / "p.pdb", lacking, atoms_only=True))
    residues, structure = result.residues, read_structure(TRUE)
    assert residues.name == structure.sequence
    assert residues.number == structure.residue_names
    assert residues.found.tolist() == [False] * 3 + [True] * (len(structure) - 3)
    assert (residues.lddt_ca[:3] == 0).all()
    assert np.isnan(residues.plddt[:3]).all()
    expected = prediction(TRUE).b_factors[3:, 1]
    np.testing.assert_allclose(residues.plddt[3:], expected, atol=0.005)
    assert result.row.plddt == pytest.approx(expected.mean(), abs=0.005)


def test_a_trace_of_ca_has_no_all_atom_score(tmp_path: Path):
    trace = without(prediction(TRUE), (slice(None), np.arange(37) != 1))
    row = scored(write(tmp_path / "p.pdb", trace)).row
    assert row.lddt_ca == 1
    assert row.lddt_all_atom is None
    assert "prediction: Cα only" in row.note


@pytest.mark.parametrize(
    ("change", "plddt", "note"),
    [
        (lambda b: b, 80, ""),
        (lambda b: b / 100, 80, "pLDDT of 0 to 1 in the file, taken times 100"),
        (lambda b: b * 2, None, "no pLDDT: B-factors outside 0 to 100"),
        (lambda b: b * 0 + 1, None, "no pLDDT: all B-factors are 1"),
    ],
)
def test_the_scale_of_plddt_is_found(change, plddt: int | None, note: str, tmp_path: Path):
    true = prediction(TRUE)
    file = write(tmp_path / "p.pdb", replace(true, b_factors=change(true.b_factors)))
    result = scored(file)
    assert result.row.note == note
    if plddt is None:
        assert result.row.plddt is None
        assert result.calibration.residues == 0
    else:
        assert result.row.plddt == pytest.approx(plddt, abs=2)
        assert result.calibration.residues == result.row.resolved


def test_what_cannot_be_scored_says_why(tmp_path: Path):
    def file(text: str) -> Path:
        (tmp_path / "p.pdb").write_text(text)
        return tmp_path / "p.pdb"

    good = write(tmp_path / "good.pdb", prediction(TRUE)).read_text()
    nan = "".join(
        f"{line[:30]}{'nan':>8}{'nan':>8}{'nan':>8}{line[54:]}\n"
        for line in good.splitlines()
        if line.startswith("ATOM")
    )
    water = "HETATM    1  O   HOH A   1       1.000   1.000   1.000  1.00  0.00           O\n"
    assert reason(file("")) == "prediction: the file is empty"
    assert reason(file("<html>")) == "prediction: neither mmCIF nor PDB"
    assert reason(file(water)) == "prediction: no protein chain"
    assert "has finite coordinates" in reason(file(nan))
    assert reason(tmp_path / "good.pdb", file("")) == "reference: the file is empty"
    other = scored(reference("1ubq_A"))
    assert "not the reference's sequence" in other.row.status
    assert other.alignment.startswith("reference")
    apart = without(prediction(TRUE), (slice(5, None), slice(None)))
    masked = without(read_structure(TRUE), (slice(0, 5), slice(None)))
    assert "no Cα of the prediction" in reason(
        write(tmp_path / "a.pdb", apart), write(tmp_path / "b.pdb", masked)
    )


def test_a_chain_of_a_store_is_the_one_of_its_file():
    structure = read_structure(TRUE)
    ours, theirs = from_features(features(structure)), from_structure(structure)
    kept = theirs.atom_mask & (np.arange(37) != 36)  # a store keeps no OXT
    assert ours.sequence == theirs.sequence
    assert (ours.atom_mask == kept).all()
    assert (ours.positions[kept] == theirs.positions[kept]).all()


def test_selenomethionine_is_methionine(tmp_path: Path):
    true = reference("1lcd_A", "full_atom")
    text = write(tmp_path / "p.pdb", prediction(true)).read_text()
    assert text.count(" SD  MET ") == 2
    (tmp_path / "p.pdb").write_text(text.replace(" SD  MET ", "SE   MSE ").replace("MET", "MSE"))
    row = scored(tmp_path / "p.pdb", true).row
    assert (row.status, row.match, row.lddt_all_atom) == (SCORED, "sequence", 1)


def with_occupancy_0(path: Path, numbers: range) -> Path:
    """Sets the occupancy of the residues of these numbers."""
    lines = path.read_text().splitlines()
    atoms = {
        k for k, line in enumerate(lines) if line[:4] == "ATOM" and int(line[22:26]) in numbers
    }
    lines = [f"{x[:54]}  0.00{x[60:]}" if k in atoms else x for k, x in enumerate(lines)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("numbers", [range(30, 40), range(1, 1000)])
def test_an_occupancy_of_0_means_nothing_in_a_prediction(numbers: range, tmp_path: Path):
    true = reference("1ubq_A")
    file = with_occupancy_0(write(tmp_path / "p.pdb", prediction(true)), numbers)
    row = scored(file, true).row
    assert (row.matched, row.lddt_ca, row.lddt_all_atom, row.note) == (76, 1, 1, "")


def test_an_occupancy_of_0_is_unresolved_in_a_reference(tmp_path: Path):
    true, whole = tmp_path / "t.pdb", write(tmp_path / "p.pdb", prediction(reference("1ubq_A")))
    write(true, read_structure(reference("1ubq_A")))
    assert scored(whole, with_occupancy_0(true, range(30, 40))).row.resolved == 66
    said = reason(whole, with_occupancy_0(true, range(1000)))
    assert said.endswith("has finite coordinates and an occupancy above 0")


def test_symmetric_atoms_of_leucine_may_be_exchanged(tmp_path: Path):
    true = reference("1ubq_A")
    file = write(tmp_path / "p.pdb", prediction(true))
    text, names = file.read_text(), ("CD1 LEU", "CD2 LEU")
    assert text.count(names[0]) == text.count(names[1]) == 9
    text = text.replace(names[0], "?").replace(names[1], names[0]).replace("?", names[1])
    file.write_text(text)
    assert scored(file, true).row.lddt_all_atom == 1


def test_a_backbone_says_that_it_has_no_side_chains(tmp_path: Path):
    side_chains = (slice(None), [k for k in range(37) if k not in (0, 1, 2, 4)])
    bare = without(prediction(TRUE), side_chains)
    row = scored(write(tmp_path / "p.pdb", bare)).row
    assert row.lddt_all_atom < 0.5
    assert row.note == "prediction: no side chains"
    row = scored(tmp_path / "p.pdb", tmp_path / "p.pdb").row
    assert row.note == "prediction: no side chains; reference: no side chains"


def test_of_several_models_the_first_is_scored_and_that_is_said(tmp_path: Path):
    file = tmp_path / "p.pdb"
    atoms = [write(file, prediction(TRUE, s), atoms_only=True).read_text() for s in (0.0, 2.0)]
    file.write_text("".join(f"MODEL     {k + 1:4}\n{a}ENDMDL\n" for k, a in enumerate(atoms)))
    row = scored(file).row
    assert (row.lddt_ca, row.note) == (1, "prediction: several models, the first is scored")
    assert scored(TRUE, file).row.note.endswith("reference: several models, the first is scored")


def test_residues_of_the_prediction_without_a_place_are_counted(tmp_path: Path):
    part = without(read_structure(TRUE), (slice(5), slice(None)))
    true = write(tmp_path / "t.pdb", part, atoms_only=True)
    row = scored(write(tmp_path / "p.pdb", prediction(TRUE)), true).row
    assert row.note == f"{WITHOUT_PLACE}: 5"
    row = scored(tmp_path / "p.pdb", write(tmp_path / "t.pdb", part)).row
    assert row.note == ""  # the sequence of this one has them


def test_a_chain_without_a_name_is_scored(tmp_path: Path):
    file = write(tmp_path / "p.pdb", prediction(TRUE), atoms_only=True)
    lines = file.read_text().splitlines()
    file.write_text("\n".join(f"{line[:21]} {line[22:]}" for line in lines) + "\n")
    assert scored(file).row.lddt_ca == scored(TRUE, file).row.lddt_ca == 1


@pytest.mark.parametrize(
    ("file", "note"),
    [
        ("residue_names/base.pdb", ""),
        ("residue_names/amber.pdb", ""),
        ("ter_inside_a_chain/predter.pdb", ""),
        (
            "residue_names/predsep.pdb",
            "prediction: modified residues are read as X, with the atoms they have: SEP 20, SEP 57,"
            " SEP 65",
        ),
    ],
)
def test_one_prediction_has_one_score_however_it_is_written(file: str, note: str):
    """In ways that were once misread."""
    row = scored(CASES / file, CASES / "reference.pdb").row
    assert (row.status, row.matched, row.note) == ("ok", 76, note)
    # biotite's lddt, and tmtools over all Cα.
    assert row.lddt_ca == pytest.approx(0.832, abs=5e-4)
    assert row.tm_score == pytest.approx(0.925, abs=5e-4)
    assert row.lddt_all_atom == pytest.approx(0.843, abs=5e-4)
