"""What two evaluations say of each other, and what they do not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from esmfold_peft.config import EvaluateConfig
from esmfold_peft.evaluation import plots
from esmfold_peft.evaluation.comparison import Comparison, compare_folders, difference
from esmfold_peft.evaluation.plots import draw_comparison
from esmfold_peft.evaluation.result_files import (
    _names,
    comparison_table,
    score_tables,
    write_comparison,
)
from esmfold_peft.evaluation.scoring import Score
from esmfold_peft.evaluation.summary import summarize
from esmfold_peft.evaluation.table_files import SCORES, write_scores_table
from tests.evaluation.predictions import summary
from tests.evaluation.test_summary import scored


def row(name: str, score: float = 0.5, **numbers: int) -> Score:
    counts = {"length": 80, "resolved": 76, "pairs": 900, **numbers}
    return replace(scored(name, lddt_ca=score).row, **counts)


def written(folder: Path, rows: list[Score]) -> Path:
    folder.mkdir()
    write_scores_table(folder / SCORES, rows)
    (folder / "summary.json").write_text('{"metrics": {}}')
    return folder


def compared(one: list[Score], other: list[Score]) -> Comparison:
    return Comparison([("", r.id) for r in one], one, other, [], [], [])


def test_rounding_is_no_win():
    one = np.linspace(0.1, 0.9, 9)
    found = difference("tm_score", one, one + 6e-15 * np.array([1, -1, 1, 1, 1, 1, 0, 1, 1]))
    assert (found.wins, found.ties, found.losses) == (0, 9, 0)
    assert (found.difference, found.low, found.high, found.wilcoxon_p) == (0, 0, 0, None)
    found = difference("tm_score", one, one + 1e-8)
    assert (found.wins, found.ties) == (9, 0)


def test_different_references_of_one_id_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture):
    rows = [row(name) for name in "abcd"]
    others = [rows[0], row("b", length=81), row("c", resolved=75), row("d", pairs=901)]
    one, other = written(tmp_path / "one", rows), written(tmp_path / "other", others)
    found = compare_folders(one, other)
    assert found.summary()["other_references"] == ["b", "c", "d"]
    said = capsys.readouterr().err
    assert said.strip() == "3 chains have different references in the two, such as b"
    write_comparison(
        EvaluateConfig(output=tmp_path / "out", compare=(one, other), plots=False), found
    )
    assert summary(tmp_path / "out", "comparison.json")["other_references"] == ["b", "c", "d"]
    assert compare_folders(one, one).other_references == []
    assert not capsys.readouterr().err


@pytest.mark.parametrize("n", [4, 5])
def test_few_chains_have_no_interval(n: int, tmp_path: Path):
    one = [row(str(k), 0.5) for k in range(n)]
    other = [row(str(k), 0.6 + 0.01 * k) for k in range(n)]
    found = compared(one, other)
    change = found.differences()["lddt_ca"]
    statistic = summarize([scored(r.id, lddt_ca=r.lddt_ca) for r in other])["metrics"]["lddt_ca"]
    for low, high in ((change.low, change.high), (statistic["low"], statistic["high"])):
        assert (low is None and high is None) == (n < 5)
    config = EvaluateConfig(output=tmp_path, compare=(tmp_path, tmp_path))
    table = comparison_table(found, config)
    assert bool(next(iter(table.columns[4].cells))) == (n == 5)
    (table,) = score_tables(summarize([scored(r.id, lddt_ca=r.lddt_ca) for r in other]), "x")
    assert bool(next(iter(table.columns[3].cells))) == (n == 5)


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [
        ("runs/a/scores", "runs/b/scores", ("a", "b")),
        ("scores", "scores_best", ("scores", "scores_best")),
        ("/deep/x", "/deep/y/z", ("x", "y/z")),
        ("runs/a", "runs/a", ("a", "a")),
        ("runs", "runs/a", ("runs", "runs/a")),
    ],
)
def test_an_axis_has_what_tells_its_folder_apart(one: str, other: str, names: tuple[str, str]):
    assert _names(Path(one), Path(other)) == names


def test_a_dot_at_1_is_whole():
    """The frame, on which it lies, does not cut it."""
    axes = Figure().add_subplot()
    plots._by_length(axes, [80, 90], [0.5, 1.0])
    (dots,) = axes.collections
    assert not dots.get_clip_on()
    assert dots.get_offsets().tolist() == [[80, 0.5], [90, 1.0]]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_long_names_do_not_leave_the_figure(tmp_path: Path):
    """White on all sides, whatever the folders are called."""
    names = ("a_rather_long_name_of_a_folder/" * 3, "short " * 30)
    picture = pixels(draw_comparison(tmp_path, [0.5], [0.4], names, "5 chains\np = 0.1"))
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert (edge == 255).all()


def test_bins_of_few_residues_have_small_dots():
    bins = [
        {"from": 5.0 * k, "to": 5.0 * k + 5, "residues": n, "plddt": 5 * k + 2.5, "lddt_ca": 0.5}
        for k, n in ((4, 1), (12, 2500))
    ]
    axes = Figure().add_subplot()
    plots._calibration(axes, {"bins": bins, "mean_absolute_error": 0.1})
    (dots,) = axes.collections
    small, large = dots.get_sizes()
    assert 10 * small < large
    assert dots.get_offsets().tolist() == [[0.225, 0.5], [0.625, 0.5]]
    assert axes.get_xlim() == axes.get_ylim() == (0, 1)
    texts = {text.get_text() for text in axes.get_legend().get_texts()}
    assert texts == {"perfect", "residues (tallest bar: 2,500)", "expected calibration error 0.100"}
