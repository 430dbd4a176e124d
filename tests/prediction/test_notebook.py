"""What a notebook shows of a prediction, with and without py3Dmol."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from esmfold_peft.prediction import notebook
from esmfold_peft.prediction.notebook import notebook_html, residues_by_colour
from tests.prediction.pages import real_record

FACTS = {"name": "a<b>", "mean pLDDT": "70.1"}


@pytest.fixture(scope="module")
def pdb_text(example: Path) -> str:
    return real_record(example).pdb_text


def test_every_residue_has_the_colour_of_its_band(example: Path):
    record = real_record(example)
    found = residues_by_colour(record.pdb_text)
    numbers = np.arange(1, 60)
    assert found == {
        ("A", "#0053D6"): numbers[record.plddt > 90].tolist(),
        ("A", "#65CBF3"): numbers[(record.plddt <= 90) & (record.plddt > 70)].tolist(),
        ("A", "#FFDB13"): numbers[(record.plddt <= 70) & (record.plddt > 50)].tolist(),
        ("A", "#FF7D45"): numbers[record.plddt <= 50].tolist(),
    }


def test_without_py3dmol_there_are_the_facts_and_a_hint(
    pdb_text: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(notebook, "find_spec", lambda name: None)
    html = notebook_html(pdb_text, FACTS)
    assert "<th>name</th><td>a&lt;b&gt;</td>" in html
    assert "pip install 'esmfold-peft[notebook]'" in html
    assert "<script" not in html
    assert "py3Dmol" not in notebook_html("", FACTS)


def test_with_py3dmol_there_is_a_view(pdb_text: str, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []

    class View:
        def __init__(self, **size: int) -> None:
            assert set(size) == {"width", "height"}

        def _make_html(self) -> str:
            return "<div>view</div>"

        def __getattr__(self, name: str):
            return lambda *arguments: calls.append(name)

    module = ModuleType("py3Dmol")
    module.view = View  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "py3Dmol", module)
    monkeypatch.setattr(notebook, "find_spec", lambda name: name)
    html = notebook_html(pdb_text, FACTS)
    assert html.endswith("</table><div>view</div>")
    assert calls == ["addModel", *["setStyle"] * 4, "zoomTo"]


def test_the_real_py3dmol_takes_these_calls(pdb_text: str):
    pytest.importorskip("py3Dmol", reason="py3Dmol is optional")
    html = notebook_html(pdb_text, FACTS)
    assert html.count(".setStyle(") == 4
    assert "pip install" not in html
