"""The report compares adapters chain by chain, and has what trials log; by files made by hand."""

import csv
import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from scipy.stats import wilcoxon

from esmfold_peft.config import LadderConfig, SearchConfig
from esmfold_peft.config.training import DataConfig
from esmfold_peft.search.grid import Arm
from esmfold_peft.search.ladder import Trial
from esmfold_peft.search.report import about, figures, markdown, sections_of, write_report
from esmfold_peft.search.report.rows import LOGGED_COLUMNS, ArmPair, logged_cells, pairs_of, rows_of
from esmfold_peft.search.search_record import LadderRecord, SearchRecord, TrialRecord

STEPS = 100
GRID = {"lora": [1], "lorta": [8], "none": []}
LORA, LORTA, NONE = Arm("lora", 1, 0), Arm("lorta", 8, 0), Arm("none", None, 0)


def trial(folder: Path, arm: Arm, tables: dict[int, dict[str, float]]) -> TrialRecord:
    """A trial that was validated at these steps; the score of a step is the mean of its table."""
    multiple = 128.0 if arm.has_alpha else 1.0
    made = TrialRecord(
        arm, Trial(multiple, STEPS), arm.alpha(Trial(multiple, STEPS)), folder / arm.name,
        "converged", STEPS,
    )  # fmt: skip
    validation = made.folder / "run" / "validation"
    validation.mkdir(parents=True)
    rows = ["step,validation/lddt_ca,validation/lddt_ca_raw"]
    for step, scores in tables.items():
        mean = statistics.fmean(scores.values())
        rows.append(f"{step},{mean},{1 - mean}")
        lines = [f"{name},50,{score},{1 - score}" for name, score in scores.items()]
        table = "\n".join(["id,length,lddt_ca,lddt_ca_raw", *lines]) + "\n"
        (validation / f"step_{step:08d}.csv").write_text(table)
    (made.folder / "run" / "metrics.csv").write_text("\n".join(rows) + "\n")
    return replace(made, score=0.5)


def won(folder: Path, arm: Arm, tables: dict[int, dict[str, float]]) -> LadderRecord:
    made = trial(folder, arm, tables)
    return LadderRecord(arm, (made,), winner=made)


def record(output: Path, *ladders: LadderRecord, grid=GRID, **ladder) -> SearchRecord:
    data = DataConfig(Path("t"), Path("v"))
    config = SearchConfig(output, data, grid, ladder=LadderConfig(**ladder), seeds=(0, 1))
    return SearchRecord(config, ladders)


def pair(search: SearchRecord) -> ArmPair:
    (found,) = pairs_of(search)[0]
    return found


BASE = {f"c{k}": 0.3 + 0.05 * k for k in range(8)}
GAINS = [0.01, 0.02, -0.005, 0.03, 0.015, 0.0, 0.025, 0.04]
BETTER = {name: score + gain for (name, score), gain in zip(BASE.items(), GAINS, strict=True)}


def test_the_difference_is_paired_by_chain_with_interval_and_p(tmp_path: Path):
    # In another order, and with a chain that only one has.
    shuffled = {"z": 0.99} | dict(sorted(BETTER.items(), reverse=True))
    search = record(
        tmp_path, won(tmp_path, LORA, {STEPS: BASE}), won(tmp_path, LORTA, {STEPS: shuffled})
    )
    found = pair(search)
    difference = found.difference
    assert (found.one, found.other, found.seeds) == ("LoRA r=1", "LoRTA r=8", 1)
    assert difference.count == 8
    assert difference.difference == pytest.approx(statistics.fmean(GAINS), abs=1e-9)
    assert difference.one == pytest.approx(statistics.fmean(BASE.values()))
    assert difference.wilcoxon_p == pytest.approx(wilcoxon([g for g in GAINS if g]).pvalue)
    assert (difference.wins, difference.ties, difference.losses) == (6, 1, 1)
    assert difference.low is not None
    assert difference.high is not None
    # Bootstrap of the mean: about two standard errors to each side, and above 0 here.
    error = statistics.stdev(GAINS) / len(GAINS) ** 0.5
    assert 0 < difference.low < difference.difference < difference.high
    assert difference.high - difference.low == pytest.approx(2 * 1.96 * error, rel=0.2)


def test_the_table_is_that_of_the_score_and_the_metric(tmp_path: Path):
    high = {name: score + 0.2 for name, score in BASE.items()}
    search = (
        won(tmp_path, LORA, {50: high, STEPS: BASE}),
        won(tmp_path, LORTA, {50: BASE, STEPS: BETTER}),
    )
    gain = statistics.fmean(GAINS)
    assert pair(record(tmp_path, *search)).difference.difference == pytest.approx(gain)
    best = pair(record(tmp_path, *search, select="best")).difference
    assert best.difference == pytest.approx(gain - 0.2)
    raw = pair(record(tmp_path, *search, metric="raw")).difference
    assert raw.difference == pytest.approx(-gain)


def test_seeds_are_averaged_by_chain_before_they_are_compared(tmp_path: Path):
    up = {name: score + 0.1 for name, score in BASE.items()}
    search = record(
        tmp_path,
        won(tmp_path, LORA, {STEPS: BASE}),
        won(tmp_path, replace(LORA, seed=1), {STEPS: up}),
        won(tmp_path, LORTA, {STEPS: BETTER}),
        won(tmp_path, replace(LORTA, seed=1), {STEPS: BASE}),
    )
    found = pair(search)
    assert (found.seeds, found.difference.count) == (2, 8)  # chains, not chains times seeds
    assert found.difference.difference == pytest.approx(statistics.fmean(GAINS) / 2 - 0.05)
    # A seed that one of the two lacks does not count.
    assert pair(replace(search, ladders=search.ladders[:3])).seeds == 1


def test_what_is_missing_is_said(tmp_path: Path):
    gone = won(tmp_path, LORTA, {STEPS: BETTER})
    (gone.trials[0].folder / "run" / "validation" / f"step_{STEPS:08d}.csv").unlink()
    lost = LadderRecord(
        replace(LORTA, seed=1), (replace(gone.trials[0], state="below frozen"),), exhausted=True
    )
    other = won(tmp_path, replace(NONE, seed=1), {STEPS: {"x": 0.5}})
    search = record(tmp_path, won(tmp_path, LORA, {STEPS: BASE}), gone, lost, other)
    assert pairs_of(search) == ([], [
        "LoRTA r=8, seed 0, has no table of its validation chains.",
        "LoRTA r=8, seed 1, has no winner: no survivor (all below frozen down to the floor).",
        "frozen and LoRA r=1 have no chain of the same seed in common.",
    ])  # fmt: skip


def test_all_pairs_are_in_the_files_frozen_first_and_few_chains_have_no_interval(tmp_path: Path):
    few = {name: BASE[name] for name in list(BASE)[:4]}
    search = record(
        tmp_path,
        won(tmp_path, LORA, {STEPS: few}),
        won(tmp_path, LORTA, {STEPS: BETTER}),
        won(tmp_path, NONE, {STEPS: BASE}),
    )
    write_report(search)
    rows = list(csv.DictReader((tmp_path / "report" / "pairs.csv").open()))
    assert [(row["one"], row["other"]) for row in rows] == [
        ("frozen", "LoRA r=1"), ("frozen", "LoRTA r=8"), ("LoRA r=1", "LoRTA r=8"),
    ]  # fmt: skip
    equal, better, last = rows
    assert (last["chains"], last["low"], last["high"]) == ("4", "", "")
    assert float(last["difference"]) == pytest.approx(statistics.fmean(GAINS[:4]), abs=6e-5)
    assert (equal["difference"], equal["p"], equal["ties"]) == ("0.0000", "", "4")
    assert 0 < float(better["low"]) < float(better["difference"]) < float(better["high"])
    assert better["p"] == f"{wilcoxon([g for g in GAINS if g]).pvalue:.1g}"
    for name in ("table10.md", "index.html"):
        text = (tmp_path / "report" / name).read_text()
        assert "Second minus first, paired by validation chain" in text
        assert better["difference"] in text


def three_seeds(folder: Path) -> SearchRecord:
    """Frozen and LoRTA: seeds shift all chains of both alike; LoRTA gains what `GAINS` says."""
    ladders = []
    for arm in (LORTA, NONE):
        for seed, shift in enumerate((0.0, 0.1, 0.03)):
            scores = BETTER if arm is LORTA else BASE
            made = trial(folder, replace(arm, seed=seed), {STEPS: {
                name: score + shift for name, score in scores.items()
            }})  # fmt: skip
            mean = statistics.fmean(scores.values()) + shift
            made = replace(made, score=mean, parameters=4312 if arm is LORTA else 0)
            ladders.append(LadderRecord(made.arm, (made,), winner=made))
    return record(folder, *ladders)


def test_a_difference_of_the_same_seeds_and_chains_is_surer_than_the_means(tmp_path: Path):
    search = three_seeds(tmp_path)
    lorta, frozen = (row.mean("score") for row in rows_of(search))
    gain = pair(search).difference
    assert (pair(search).seeds, lorta.seeds, lorta.chains) == (3, 3, 8)
    for mean in (lorta, frozen):
        assert mean.low < mean.mean < mean.high
        assert mean.high - mean.low > 5 * (gain.high - gain.low)
    # The shifts are those of both, so that only the chains differ.
    one_seed = pair(replace(search, ladders=(search.ladders[0], search.ladders[3]))).difference
    assert (gain.low, gain.high) == pytest.approx((one_seed.low, one_seed.high))
    assert any("With so few seeds (3) the intervals" in sentence for sentence in about(search))
    # Other seeds shift otherwise: seed 0 is compared with seed 0.
    ladders = [
        replace(ladder, arm=arm, winner=replace(ladder.trials[0], arm=arm))
        for ladder in search.ladders[:3]
        for arm in [replace(LORTA, seed=(ladder.arm.seed + 1) % 3)]
    ]
    crossed = pair(replace(search, ladders=(*ladders, *search.ladders[3:]))).difference
    assert crossed.difference == pytest.approx(gain.difference)
    assert crossed.high - crossed.low > 2 * (gain.high - gain.low)


def test_the_summary_says_what_the_tables_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    search = three_seeds(tmp_path)
    config = replace(search.config, start_from=tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    write_report(replace(search, config=config))
    found = json.loads((tmp_path / "report" / "summary.json").read_text())
    table = list(csv.DictReader((tmp_path / "report" / "table10.csv").open()))
    for arm, row in zip(found["arms"], table, strict=True):
        assert (arm["model"], str(arm["parameters"])) == (row["model"], row["parameters"])
        assert f"{arm['seeds']} of 3" == row["seeds"]
        for name, column in (("mean", "lddt_ca"), ("low", "low"), ("high", "high")):
            assert f"{arm[name]:.4f}" == row[f"validation_{column}"]
    assert found["arms"][0]["alpha"] == {"0": 1024, "1": 1024, "2": 1024}
    (row,) = csv.DictReader((tmp_path / "report" / "pairs.csv").open())
    (gain,) = found["differences_to_frozen"]
    assert (gain["model"], str(gain["seeds"]), str(gain["count"])) == ("LoRTA r=8", "3", "8")
    for name in ("difference", "low", "high"):
        assert f"{gain[name]:.4f}" == row[name]
    assert found["settings"]["start_from"] == "base"
    assert found["settings"]["steps"] == config.engine.steps


def test_the_bars_of_figure_5_are_the_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    search, drawn = three_seeds(tmp_path), list[Figure]()
    monkeypatch.setattr(figures, "rendered", lambda figure: drawn.append(figure) or {})
    figures.draw_figure5(search)
    lorta, frozen = (row.mean("score") for row in rows_of(search))
    (held_out,) = (axes for axes in drawn[0].axes if "held-out" in axes.get_title())
    ((_, _, (bar,)),) = held_out.containers
    ends = [point for segment in bar.get_segments() for point in segment.tolist()]
    assert ends == [pytest.approx([4312, lorta.low]), pytest.approx([4312, lorta.high])]
    (band,) = held_out.patches
    assert band.get_extents().transformed(held_out.transData.inverted()).intervaly.tolist() == (
        pytest.approx([frozen.low, frozen.high])
    )


def test_trials_below_frozen_are_listed_apart_from_diverged_ones(tmp_path: Path):
    made = won(tmp_path, LORA, {STEPS: BASE}).trials[0]
    below = replace(made, state="below frozen", message="0.5 was to be beaten")
    lost = replace(made, state="diverged", rule="update", trial=Trial(256.0, STEPS))
    search = record(tmp_path, LadderRecord(LORA, (lost, below), exhausted=True))
    text = markdown(sections_of(search))
    diverged, under = text.split("## Diverged trials")[1].split("## Trials below frozen")
    assert diverged.strip().startswith("- LoRA r=1, seed 0, α = 128: ended by rule update")
    assert under.strip() == "- LoRA r=1, seed 0, α = 128: at step 100 0.5 was to be beaten"
    assert "no survivor (1 below frozen, 1 diverged down to the floor)" in text
    assert "all diverged" not in text


@pytest.mark.parametrize(
    ("grid", "frozen", "ladder", "said"),
    [
        ({"lora": [1]}, {}, {}, "The grid has no frozen model (none) to beat"),
        (GRID, {"exhausted": True}, {}, "The frozen model of seed 0 has diverged: with that seed"),
        (GRID, {"winner": True}, {}, "The frozen model of seed 0 has no score: with that seed"),
        (GRID, {}, {}, "A trial whose score is not above the frozen model's at the same step is"),
        (GRID, {}, {"beat_frozen": False}, ""),
    ],
)
def test_the_report_says_what_was_to_be_beaten(grid, frozen, ladder, said: str, tmp_path: Path):
    made = replace(won(tmp_path, NONE, {STEPS: BASE}).trials[0], score=None)
    if frozen.get("winner"):
        frozen = {"winner": made}
    ladders = [LadderRecord(LORA, ())]
    ladders += [LadderRecord(NONE, (made,), **frozen)] if "none" in grid else []
    text = " ".join(about(record(tmp_path, *ladders, grid=grid, **ladder)))
    assert said in text
    if not said:
        assert "The frozen model" not in text
        assert "to beat" not in text


def with_metrics(folder: Path, text: str) -> TrialRecord:
    made = trial(folder, LORTA, {STEPS: BASE})
    (made.folder / "run" / "metrics.csv").write_text(text)
    return made


def test_what_a_trial_logs_for_a_comparison(tmp_path: Path):
    rows = ["step,gradient_share/adapter,gradient_share/trunk,update/relative,damping/a,damping/b"]
    rows += [f"{k},{0.5 if k <= 40 else 0.25},0.7,{k / 4},0.9,{1 / k}" for k in range(1, 91)]
    rows += ["91,,,,,"]  # a validation of its own
    rows += ["120,1.0,1.0,999,1.0,1.0"]  # of a whole trial after its part
    made = with_metrics(tmp_path, "\n".join(rows) + "\n")
    # Means over the 50 last lines that have the number; the head is not trained.
    assert dict(zip(LOGGED_COLUMNS, logged_cells(made), strict=True)) == {
        "gradient_share_adapter": "0.25",
        "gradient_share_trunk": "0.7",
        "gradient_share_head": "",
        "relative_update": "22.5",
        "damping": "a 0.9, b 0.0111",
    }
    write_report(record(tmp_path, LadderRecord(LORTA, (made,), winner=made)))
    (row,) = csv.DictReader((tmp_path / "report" / "trials.csv").open())
    assert (row["gradient_share_trunk"], row["damping"]) == ("0.7", "a 0.9, b 0.0111")
    for name in ("table10.md", "index.html"):
        assert "a 0.9, b 0.0111" in (tmp_path / "report" / name).read_text()


@pytest.mark.parametrize("text", ["", "step,train/loss\n10,3.0\n", "step,train/loss\n10,3.0"])
def test_a_trial_that_logs_nothing_of_it_has_empty_cells(text: str, tmp_path: Path):
    assert logged_cells(with_metrics(tmp_path, text)) == [""] * len(LOGGED_COLUMNS)
