"""What a notebook shows of a prediction, with and without py3Dmol."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from esmfold_peft.prediction import result
from esmfold_peft.prediction.result import Prediction, residues_by_colour
from tests.prediction.pages import real_prediction


@pytest.fixture
def prediction(example: Path) -> Prediction:
    return real_prediction(example, "a<b>")


def test_every_residue_has_the_colour_of_its_band(prediction: Prediction):
    found = residues_by_colour(prediction.pdb_text)
    numbers, plddt = np.arange(1, 60), prediction.plddt
    assert found == {
        ("A", "#0053D6"): numbers[plddt > 90].tolist(),
        ("A", "#65CBF3"): numbers[(plddt <= 90) & (plddt > 70)].tolist(),
        ("A", "#FFDB13"): numbers[(plddt <= 70) & (plddt > 50)].tolist(),
        ("A", "#FF7D45"): numbers[plddt <= 50].tolist(),
    }


def test_without_py3dmol_there_are_the_facts_and_a_hint(
    prediction: Prediction, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(result, "find_spec", lambda name: None)
    html = prediction._repr_html_()
    assert "<th>name</th><td>a&lt;b&gt;</td>" in html
    assert "pip install 'esmfold-peft[notebook]'" in html
    assert "<script" not in html
    far = replace(prediction, positions=prediction.positions - 1234.5)
    assert "pip install" not in far._repr_html_()


def test_with_py3dmol_there_is_a_view(prediction: Prediction, monkeypatch: pytest.MonkeyPatch):
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
    monkeypatch.setattr(result, "find_spec", lambda name: name)
    assert prediction._repr_html_().endswith("</table><div>view</div>")
    assert calls == ["addModel", *["setStyle"] * 4, "zoomTo"]


def test_the_real_py3dmol_takes_these_calls(prediction: Prediction):
    pytest.importorskip("py3Dmol", reason="py3Dmol is optional")
    html = prediction._repr_html_()
    assert html.count(".setStyle(") == 4
    assert "pip install" not in html
