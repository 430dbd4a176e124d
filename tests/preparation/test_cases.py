"""What `prepare` makes of files that were once misread (tests/cases)."""

import re
import shutil
from pathlib import Path

import pytest

from esmfold_peft.config import FilterConfig
from esmfold_peft.errors import UserError
from tests.preparation.conftest import contents, report_of, rows

CASES = Path(__file__).parents[1] / "cases"
SHORT = FilterConfig(min_length=10)


def ids(store: Path) -> list[str]:
    return [line["id"] for line in rows(store, "manifest.csv")]


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_files_of_one_entry_id_are_named_after_themselves(prepare, order: tuple[int, ...]):
    files = [CASES / "entry_ids" / f"job{number}_model_0.cif" for number in order]
    store = prepare(*files, filters=SHORT)
    assert ids(store) == [f"job{number}_model_0" for number in order]
    assert rows(store, "rejected.csv") == []
    assert {line["id"] for line in rows(store, "notes.csv")} == set(ids(store))
    assert report_of(store)["chains_with_notes"] == 3
    assert [int(line["length"]) for line in rows(store, "manifest.csv")] == [
        25 + (number == 3) for number in order
    ]
    before = contents(store)
    assert contents(prepare(*files, filters=SHORT)) == before  # the names stay


def test_files_of_one_name_are_told_apart_by_their_folders(prepare, tmp_path: Path):
    for number in (1, 2, 3):
        folder = tmp_path / "in" / f"job{number}" / "out"
        folder.mkdir(parents=True)
        shutil.copy(CASES / "entry_ids" / f"job{number}_model_0.cif", folder / "model.cif")
    store = prepare(tmp_path / "in", filters=SHORT)
    assert ids(store) == ["model", "out_model", "job3_out_model"]


def test_equal_files_of_one_entry_id_are_duplicates(prepare, tmp_path: Path):
    for name in ("a", "b"):
        shutil.copy(CASES / "entry_ids" / "job1_model_0.cif", tmp_path / f"{name}.cif")
    store = prepare(tmp_path / "a.cif", tmp_path / "b.cif", filters=SHORT)
    assert ids(store) == ["model"]
    (line,) = rows(store, "rejected.csv")
    assert (line["kind"], line["id"]) == ("duplicate", "model")


def test_other_coordinates_of_one_pdb_entry_are_kept_under_the_file_name(prepare, tmp_path: Path):
    text = (CASES / "reference.pdb").read_text()
    header = f"HEADER    CHROMOSOMAL PROTEIN                     02-JAN-87   1UBQ{' ' * 14}\n"
    (tmp_path / "1ubq.pdb").write_text(header + text)
    (tmp_path / "refined.pdb").write_text(header + re.sub("26.266", "26.299", text))
    files = tmp_path / "1ubq.pdb", tmp_path / "refined.pdb"
    assert ids(prepare(*files)) == ["1ubq_A", "refined"]
    assert ids(prepare(*files[::-1], output=tmp_path / "other")) == ["refined", "1ubq_A"]


def test_predictions_of_occupancy_0_are_kept(prepare):
    file = CASES / "occupancy" / "pred0.pdb"
    assert ids(prepare(file, predicted=True)) == ["pred0"]


def test_experiments_of_occupancy_0_are_left_out_and_it_says_why(prepare, tmp_path: Path):
    good = CASES / "reference.pdb"
    store = prepare(CASES / "occupancy" / "pred0.pdb", good, output=tmp_path / "experiments")
    (line,) = rows(store, "rejected.csv")
    assert line["kind"] == "resolved"
    assert line["reason"].endswith("all occupancies are 0, so no atom counts as resolved")


def test_water_in_the_chain_hides_no_leak(prepare, example: Path, tmp_path: Path):
    held_out = prepare(example / "held_out" / "1ubq_A.cif.gz", output=tmp_path / "held_out")
    folder = CASES / "waters_in_the_chain"
    files = [folder / "mine.cif", folder / "control.cif", example / "train" / "3nir_A.cif.gz"]
    store = prepare(*files, held_out=held_out)
    assert ids(store) == ["3nir_A"]
    reasons = {line["id"]: line["reason"] for line in rows(store, "rejected.csv")}
    assert reasons == dict.fromkeys(("mine", "control"), "has the sequence of 1ubq_A")


def test_clusters_of_entities_need_files_that_state_entities(
    prepare, capfd, example: Path, tmp_path: Path
):
    folder = CASES / "clusters_of_pdb_files"
    with pytest.raises(
        UserError, match=r"PDB files and some others do not state; .*: 1\. Give mmCIF files"
    ):
        prepare(folder / "1ubq.pdb", clusters=str(folder / "cl.txt"))
    mmcif = example / "held_out" / "1ubq_A.cif.gz"
    sources = mmcif, folder.parent / "reference.pdb"
    store = prepare(*sources, output=tmp_path / "both", clusters=str(folder / "cl.txt"))
    assert ids(store) == ["1ubq_A", "reference"]
    assert "PDB files and some others do not state; chains without one: 1" in capfd.readouterr().err
