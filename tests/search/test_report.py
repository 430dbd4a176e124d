"""The report of a search says what the search found."""

import csv
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from esmfold_peft.config import SearchConfig
from esmfold_peft.config.training import DataConfig
from esmfold_peft.search.grid import Arm
from esmfold_peft.search.ladder import Trial
from esmfold_peft.search.report import figures, write_report
from esmfold_peft.search.search_record import LadderRecord, SearchRecord, TrialRecord
from esmfold_peft.search.trial_files import column, metrics_rows

GRID = {"lora": [1], "lorta": [1, 8], "none": []}


def record_of(output: Path, ladders: tuple[LadderRecord, ...]) -> SearchRecord:
    data = DataConfig(Path("t"), Path("v"))
    return SearchRecord(SearchConfig(output, data, GRID, seeds=(0, 1)), ladders)


def won(folder: Path, kind: str, rank: int | None, seed: int, score: float, parameters: int):
    arm, trial = Arm(kind, rank, seed), Trial(128.0, 850_000)
    run = folder / arm.name / "run"
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text(
        "step,train/loss,validation/lddt_ca,validation/lddt_ca_raw\n10,3.0,,\n20,nan,0.5,0.4\n30,2"
    )
    kept = TrialRecord(
        arm, trial, arm.alpha(trial), run.parent, "converged", 850_000, score, 0.7, parameters
    )
    lost = TrialRecord(
        arm, Trial(256.0, 850_000), 256.0, run.parent, "diverged", 20, rule="loss",
        message="<script>|above 9",
    )  # fmt: skip
    return LadderRecord(arm, (lost, kept) if rank == 8 else (kept,), kept)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("search")
    ladders = (
        won(output, "lora", 1, 0, 0.6, 34_560),
        LadderRecord(Arm("lorta", 1, 0), (), None),
        LadderRecord(Arm("lorta", 1, 1), (), None, exhausted=True),
        won(output, "lorta", 8, 0, 0.6, 4312),
        won(output, "lorta", 8, 1, 0.7, 4312),
        won(output, "none", None, 0, 0.55, 0),
    )
    record = record_of(output, ladders)
    first = {path: path.read_bytes() for path in write_report(record)}
    assert first == {path: path.read_bytes() for path in write_report(record)}
    return output / "report"


def test_a_row_has_mean_spread_and_the_papers_numbers(report: Path):
    rows = {row["model"]: row for row in csv.DictReader((report / "table10.csv").open())}
    row = rows["LoRTA r=8"]
    assert (row["validation_lddt_ca"], row["validation_spread"]) == ("0.6500", "0.0707")
    assert (row["paper_alpha"], row["paper_lddt_ca"], row["alpha"]) == ("256", "0.667", "1024")
    assert rows["frozen"]["parameters"] == "0"
    assert "not begun (seed 0), no survivor" in rows["LoRTA r=1"]["ending"]


def test_figures_are_images_with_ranks(report: Path):
    for name in ("figure5", "curves"):
        with Image.open(report / f"{name}.png") as image:
            assert len(set(image.convert("L").resize((90, 40)).tobytes())) > 5
        ElementTree.parse(report / f"{name}.svg")
    assert "r=8" in (report / "figure5.svg").read_text()


def test_text_of_others_is_escaped_and_the_rule_is_told(report: Path):
    for name in ("index.html", "table10.md"):
        text = (report / name).read_text()
        assert "<script>|" not in text
        assert "ended by rule loss at step 20: &lt;script&gt;" in text


def test_metrics_without_empty_cells_nan_and_a_cut_line(tmp_path: Path):
    won(tmp_path, "lora", 1, 0, 0.6, 1)
    rows = metrics_rows(tmp_path / "lora_r1_seed0")
    assert column(rows, "train/loss") == [(10, 3.0)]
    assert column(rows, "validation/lddt_ca") == [(20, 0.5)]


def test_a_search_with_nothing_done_says_so(tmp_path: Path):
    write_report(record_of(tmp_path, (LadderRecord(Arm("lora", 1, 0), ()),)))
    assert "No trial has started yet." in (tmp_path / "report" / "index.html").read_text()


def test_a_search_on_a_cpu_has_cost_no_gpu_hours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    record = record_of(tmp_path, (won(tmp_path, "lora", 1, 0, 0.6, 34_560),))
    engine = replace(record.config.engine, accelerator="cpu")
    monkeypatch.chdir(tmp_path)
    write_report(replace(record, config=replace(record.config, engine=engine, output=Path())))
    page = (tmp_path / "report" / "index.html").read_text()
    assert f"<h1>Search {tmp_path.name}</h1>" in page
    for text in (page, (tmp_path / "report" / "table10.md").read_text()):
        assert "process-hours spent" in text
        assert "GPU-hours" not in text


def test_a_wide_table_scrolls_in_its_box_and_breaks_no_word(report: Path):
    page = (report / "index.html").read_text()
    assert page.count("<table>") == page.count('<div class="wide"><table>') == 4
    style = page.split("<style>")[1].split("</style>")[0]
    assert ".wide { overflow-x: auto; }" in style
    assert ".wide td { overflow-wrap: normal; }" in style
    assert "<td>converged</td>" in page
    assert '<td class="long">not begun (seed 0), no survivor' in page


def test_paths_are_shown_relative_to_the_working_folder(tmp_path: Path, monkeypatch):
    record = record_of(tmp_path, (won(tmp_path, "lorta", 8, 0, 0.6, 4312),))
    data = replace(record.config.data, train=Path("/data/t"), validation=tmp_path / "chains/v")
    lost, kept = record.ladders[0].trials
    lost = replace(lost, message=f"'{tmp_path}/x.yaml' and /other{tmp_path}/y")
    monkeypatch.chdir(tmp_path)
    record = replace(record, ladders=(replace(record.ladders[0], trials=(lost, kept)),))
    write_report(replace(record, config=replace(record.config, data=data, output=Path("."))))
    page, text = ((tmp_path / "report" / n).read_text() for n in ("index.html", "table10.md"))
    for shown in (page, text):
        assert "850,000 steps, on chains/v, the mean over seeds" in shown
        assert f"x.yaml' and /other{tmp_path}/y" in shown.replace("&#x27;", "'")
        assert f"'{tmp_path}" not in shown.replace("&#x27;", "'")
    assert "train: /data/t\n  validation: chains/v" in page


def drawn(record: SearchRecord, monkeypatch: pytest.MonkeyPatch, draw) -> Figure:
    """The figure itself, laid out."""
    kept: list[Figure] = []
    rendered = figures.rendered
    monkeypatch.setattr(figures, "rendered", lambda figure: kept.append(figure) or rendered(figure))
    draw(record)
    return kept[0]


def test_a_panel_without_scores_leaves_the_other_one_alone(tmp_path: Path, monkeypatch):
    one = won(tmp_path, "lora", 1, 0, 0.6, 34_560)
    kept = replace(one.trials[0], train_score=None)
    record = record_of(tmp_path, (LadderRecord(one.arm, (kept,), kept),))
    train, held_out = drawn(record, monkeypatch, figures.draw_figure5).axes
    assert [text.get_text() for text in train.texts] == ["no score"]
    low, high = held_out.get_xlim()
    assert low < 34_560 < high
    bottom, top = held_out.get_ylim()
    assert bottom < 0.6 < top


@pytest.mark.parametrize("parameters", [(34_560, 69_120), (539, 4312, 34_560)])
def test_the_axis_of_parameters_has_numbers_and_not_too_many(
    parameters, tmp_path: Path, monkeypatch
):
    ladders = tuple(won(tmp_path, "lorta", k, 0, 0.6, p) for k, p in enumerate(parameters, 1))
    axes = drawn(record_of(tmp_path, ladders), monkeypatch, figures.draw_figure5).axes[0]
    low, high = axes.get_xlim()
    places = [*axes.get_xticks(), *axes.get_xticks(minor=True)]
    labels = [*axes.get_xticklabels(), *axes.get_xticklabels(minor=True)]
    shown = {p for p, t in zip(places, labels, strict=True) if t.get_text() and low < p < high}
    assert 1 <= len(shown) <= 6


def test_labels_of_two_kinds_with_as_many_parameters_lie_apart(tmp_path: Path, monkeypatch):
    ladders = (
        won(tmp_path, "lora", 1, 0, 0.66, 34_560),
        won(tmp_path, "lorta", 64, 0, 0.66, 34_560),
    )
    axes = drawn(record_of(tmp_path, ladders), monkeypatch, figures.draw_figure5).axes[1]
    one, two = (text.get_window_extent() for text in axes.texts)
    assert not one.overlaps(two)


def test_a_loss_that_grew_does_not_flatten_the_others(tmp_path: Path, monkeypatch):
    ladder = won(tmp_path, "lorta", 8, 0, 0.6, 4312)
    lost, kept = ladder.trials
    other = tmp_path / "lost"
    (other / "run").mkdir(parents=True)
    (other / "run" / "metrics.csv").write_text("step,train/loss\n10,4.0\n20,9000\n30,9000\n")
    ladder = replace(ladder, trials=(replace(lost, folder=other), kept))
    _, loss = drawn(record_of(tmp_path, (ladder,)), monkeypatch, figures.draw_curves).axes
    assert 4 < loss.get_ylim()[1] < 5
