"""What an mmCIF file of a prediction says beside its atoms, and whether dictionaries agree."""

import io
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
from Bio.PDB.MMCIF2Dict import MMCIF2Dict

from esmfold_peft.protein.modelcif import ModelRecord
from esmfold_peft.protein.read import read_structure
from esmfold_peft.protein.residues import ATOM37_INDEX
from esmfold_peft.protein.write import to_mmcif
from tests.protein.structures import prediction

RECORD = ModelRecord("Two chains, A and B", "esmfold-peft", "1.2.3", 0.81234)
DICTIONARIES = Path("/usr/share/libcifpp")
"""Of Debian's package libcifpp-data."""

KNOWN = (
    "Bad DDL2",  # of the dictionary
    "category indicated as CONTRIBUTED",  # all of ModelCIF
    "_chem_comp_atom.atom_id",  # no file of a structure repeats the atoms of residues
    "methodology is for pdb internal use",  # files of the PDB and of AlphaFold's database have it
)


def model(record: ModelRecord = RECORD) -> str:
    chains = [prediction("MKVX"), prediction("GS"), prediction("MKVX")]
    return to_mmcif(chains, model=record)


def complaints(text: str, dictionary: str) -> list[str]:
    """What gemmi's validation says of a file by a dictionary."""
    path = DICTIONARIES / dictionary
    if not path.is_file():
        pytest.skip(f"needs {dictionary} (Debian package libcifpp-data)")
    messages: list[str] = []
    validator = gemmi.cif.Ddl(messages.append)
    validator.read_ddl(gemmi.cif.read(str(path)))
    validator.validate_cif(gemmi.cif.read_string(text))
    return [message for message in messages if not any(known in message for known in KNOWN)]


def test_the_dictionary_of_modelcif_finds_nothing_wrong(example: Path) -> None:
    assert complaints(model(), "mmcif_ma.dic") == []
    assert complaints(model(replace(RECORD, title="", ptm=None)), "mmcif_ma.dic") == []
    chain = read_structure(example / "held_out" / "1ubq_A.cif.gz")
    as_predicted = replace(chain, method=None, resolution=None, release_date=None)
    assert complaints(to_mmcif(as_predicted, model=RECORD), "mmcif_ma.dic") == []


def test_the_dictionary_of_the_pdb_knows_all_but_the_extension() -> None:
    found = complaints(model(), "mmcif_pdbx.dic")
    assert found
    assert all("unknown tag _ma_" in message for message in found)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("_ma_data.content_type", "_ma_data.kind", "missing mandatory tag: _ma_data.content_type"),
        (" pLDDT local ", " plddt local ", "plddt"),
        ("\nC 1\n", "\nB 1\n", "category struct_asym has 1 duplicated key"),
        ("\n2 2 designed", "\n2 7 designed", "_ma_data.id"),
        ("_software.name", "_software.nam", "unknown tag _software.nam"),
    ],
)
def test_a_wrong_file_would_be_found(old: str, new: str, message: str) -> None:
    text = model()
    assert old in text
    found = complaints(text.replace(old, new), "mmcif_ma.dic")
    assert any(message in one for one in found)


def test_plddt_is_a_metric_of_every_residue() -> None:
    table = MMCIF2Dict(io.StringIO(model()))
    atoms = zip(
        *(table[f"_atom_site.{item}"] for item in (
            "label_asym_id", "label_seq_id", "label_comp_id", "B_iso_or_equiv", "label_atom_id"
        )),
        strict=True,
    )  # fmt: skip
    expected = [(*row[:3], float(row[3])) for row in atoms if row[4] == "CA"]
    items = ("label_asym_id", "label_seq_id", "label_comp_id", "metric_value")
    local = zip(*(table[f"_ma_qa_metric_local.{item}"] for item in items), strict=True)
    assert [(*row[:3], float(row[3])) for row in local] == expected
    assert len(expected) == 10
    assert set(table["_ma_qa_metric_local.metric_id"]) == {"1"}
    names = dict(zip(table["_ma_qa_metric.id"], table["_ma_qa_metric.name"], strict=True))
    values = zip(
        (names[i] for i in table["_ma_qa_metric_global.metric_id"]),
        table["_ma_qa_metric_global.metric_value"],
        strict=True,
    )
    mean = np.mean([row[3] for row in expected])
    assert dict(values) == {"mean pLDDT": f"{mean:.2f}", "pTM": "0.8123"}


def test_without_ptm_there_is_no_such_metric() -> None:
    table = MMCIF2Dict(io.StringIO(model(replace(RECORD, ptm=None))))
    assert table["_ma_qa_metric.name"] == ["pLDDT", "mean pLDDT"]
    assert table["_ma_qa_metric.mode"] == ["local", "global"]
    assert len(table["_ma_qa_metric_global.metric_id"]) == 1


def test_software_and_targets() -> None:
    table = MMCIF2Dict(io.StringIO(model()))
    assert table["_software.name"] == ["esmfold-peft"]
    assert table["_software.version"] == ["1.2.3"]
    assert table["_software.citation_id"] == table["_citation.id"]
    assert table["_struct.title"] == ["Two chains, A and B"]
    assert table["_entry.id"] == table["_struct.entry_id"] == ["my_protein_1"]
    assert table["_ma_target_entity.entity_id"] == ["1", "2"]
    assert table["_ma_target_entity_instance.asym_id"] == ["A", "B", "C"]
    assert table["_ma_target_entity_instance.entity_id"] == ["1", "2", "1"]
    data = dict(zip(table["_ma_data.id"], table["_ma_data.content_type"], strict=True))
    assert [data[i] for i in table["_ma_target_entity.data_id"]] == ["target", "target"]
    assert [data[i] for i in table["_ma_model_list.data_id"]] == ["model coordinates"]
    groups = zip(table["_ma_data_group.group_id"], table["_ma_data_group.data_id"], strict=True)
    kinds = [(group, data[i]) for group, i in groups]
    (given,) = table["_ma_protocol_step.input_data_group_id"]
    (made,) = table["_ma_protocol_step.output_data_group_id"]
    assert kinds == [(given, "target"), (given, "target"), (made, "model coordinates")]
    types = dict(zip(table["_chem_comp.id"], table["_chem_comp.type"], strict=True))
    assert types.pop("GLY") == "peptide linking"
    assert set(types) == {"MET", "LYS", "VAL", "SER", "UNK"}
    assert set(types.values()) == {"L-peptide linking"}


@pytest.mark.parametrize(
    ("title", "written"),
    [
        ('it\'s "so" _x; #y', 'it\'s "so" _x; #y'),
        ("é\udcff\tα\n;", "\\xe9\\udcff \\u03b1 ;"),
        ("?", "?"),
        ("data_x" * 80, "data_x" * 80),
    ],
)
def test_any_title_is_one_value_of_plain_text(title: str, written: str) -> None:
    block = gemmi.cif.read_string(model(replace(RECORD, title=title))).sole_block()
    assert gemmi.cif.as_string(block.find_values("_struct.title")[0]) == written
    assert not gemmi.cif.is_null(block.find_values("_struct.title")[0])


def test_digits_of_float32_are_left_out() -> None:
    structure = prediction("MKVA")
    structure = replace(structure, positions=structure.positions + np.float32(0.00042))
    block = gemmi.cif.read_string(to_mmcif(structure, model=RECORD)).sole_block()
    for item, digits in (("Cartn_x", 3), ("Cartn_z", 3), ("B_iso_or_equiv", 2)):
        decimals = [value.partition(".")[2] for value in block.find_values(f"_atom_site.{item}")]
        assert max(map(len, decimals)) == digits
    ca = [float(row[1]) for row in block.find("_atom_site.", ["label_atom_id", "Cartn_x"])
          if row[0] == "CA"]  # fmt: skip
    np.testing.assert_allclose(ca, structure.positions[:, ATOM37_INDEX["CA"], 0], atol=5.1e-4)
