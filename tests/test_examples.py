"""The notebooks of examples/ run from top to bottom, and are kept with what they show."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> dict:
    return json.loads(request.param.read_text())


def test_there_are_three_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["family", "inside_lorta", "predict"]


def test_a_notebook_is_kept_as_it_ran_from_top_to_bottom(notebook: dict):
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", ()) for output in outputs)
    assert str(ROOT) not in json.dumps(outputs)


@pytest.mark.slow
def test_a_notebook_runs_with_two_steps_of_training(notebook: dict, tmp_path: Path):
    for folder in ("configs", "data"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "examples").mkdir()
    text = json.dumps(notebook)
    assert ("steps = 90" in text) == ("esmfold-peft train" in text)
    cells = nbformat.reads(text.replace("steps = 90", "steps = 2"), as_version=4)
    place = {"metadata": {"path": str(tmp_path / "examples")}}
    NotebookClient(cells, timeout=600, resources=place).execute()
    pictures = [
        output
        for cell in cells.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", ())
    ]
    assert pictures
