"""The grid: its order, the folders of its trials, and the settings that each trial has."""

from dataclasses import fields, replace
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esmfold_peft.config import AdapterConfig, DataConfig, LadderConfig, SearchConfig, TrainConfig
from esmfold_peft.config.adapter import WITHOUT_ALPHA, WITHOUT_RANK
from esmfold_peft.search.grid import (
    Arm,
    arms_of,
    baseline_of,
    in_turn,
    rules_of,
    trial_config,
    trial_folder,
)
from esmfold_peft.search.ladder import Trial, rungs_of

DATA = DataConfig(train=Path("train"), validation=Path("validation"))
GRID = {"lora": [1], "lorta": [8, 1], "vera": [16], "none": [], "full": []}


def search(**changes) -> SearchConfig:
    return SearchConfig(output=Path("out"), data=DATA, **({"grid": GRID} | changes))


def test_arms_are_in_the_order_of_the_grid_and_seeds_follow_each_other():
    arms = arms_of(search(seeds=(2, 0)))
    assert [arm.name for arm in arms] == (
        "lora_r1_seed2 lora_r1_seed0 lorta_r8_seed2 lorta_r8_seed0 lorta_r1_seed2 lorta_r1_seed0"
        " vera_r16_seed2 vera_r16_seed0 none_seed2 none_seed0 full_seed2 full_seed0"
    ).split()
    assert [arm.label for arm in arms[::2]] == (
        ["lora r=1", "lorta r=8", "lorta r=1", "vera r=16", "none", "full"]
    )


@pytest.mark.parametrize(
    ("arm", "multiple", "alpha", "folder"),
    [
        (Arm("lorta", 8, 0), 256.0, 2048.0, "lorta_r8_seed0/alpha_2048"),
        (Arm("lorta", 64, 3), 2.0, 128.0, "lorta_r64_seed3/alpha_128"),
        (Arm("lora", 1, 0), 0.5, 0.5, "lora_r1_seed0/alpha_0.5"),
        (Arm("vera", 16, 0), 1.0, None, "vera_r16_seed0/run"),
        (Arm("full", None, 1), 1.0, None, "full_seed1/run"),
    ],
)
def test_alpha_and_folder(arm: Arm, multiple: float, alpha: float | None, folder: str):
    trial = Trial(multiple, 100)
    assert arm.alpha(trial) == alpha
    assert trial_folder(Path("out"), arm, trial) == Path("out/trials", folder)


def test_a_ladder_where_there_is_an_alpha_and_one_trial_where_there_is_none():
    config = search(ladder=LadderConfig(halve_at=1000))
    for arm in arms_of(config):
        rules = rules_of(config, arm)
        assert rules.steps == config.engine.steps
        if arm.kind in WITHOUT_ALPHA:
            # The others are compared with the frozen trial where halving looks at them.
            halve_at = 1000 if arm.kind == "none" else None
            assert (rules.rungs, rules.halve_at) == (((1.0,),), halve_at)
        else:
            assert (rules.rungs, rules.halve_at) == (rungs_of(config.ladder), 1000)


def test_one_multiple_is_not_halved():
    config = search(ladder=LadderConfig(multiples=(8.0,), halve_at=1000))
    assert rules_of(config, Arm("none", None, 0)).halve_at is None
    assert rules_of(config, Arm("lora", 1, 0)).halve_at is None


def test_the_frozen_trial_stops_at_the_halving_whether_it_is_to_be_beaten_or_not():
    for beat in (True, False):
        config = search(ladder=LadderConfig(halve_at=1000, beat_frozen=beat))
        assert rules_of(config, Arm("none", None, 0)).halve_at == 1000


def test_what_is_to_beat_the_frozen_model_of_its_seed():
    config = search(seeds=(0, 5))
    assert baseline_of(config, Arm("lora", 1, 5)) == Arm("none", None, 5)
    for kind in WITHOUT_ALPHA:
        assert baseline_of(config, Arm(kind, None, 0)) is None
    for other in (search(grid={"lora": [1]}), search(ladder=LadderConfig(beat_frozen=False))):
        assert baseline_of(other, Arm("lora", 1, 0)) is None


def test_the_frozen_ladders_are_begun_first():
    turns = in_turn(arms_of(search(seeds=(0, 1))))
    assert [arm.name for arm in turns[:3]] == ["none_seed0", "none_seed1", "lora_r1_seed0"]
    assert sorted(turns, key=str) == sorted(arms_of(search(seeds=(0, 1))), key=str)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from([256, 128, 96, 1, 1 / 3, 2 / 3, 0.3, 0.1]), min_size=1, unique=True),
    st.sampled_from([4.0, 3.0, 2.0, 1.5, 7.0]),
    st.sampled_from([1.0, 0.3, 1e-3]),
    st.lists(st.integers(1, 4096), min_size=1, max_size=2, unique=True),
)
def test_two_trials_never_share_a_folder(
    multiples: list[float], factor: float, share: float, ranks: list[int]
):
    ladder = LadderConfig(tuple(map(float, multiples)), factor, float(share * min(multiples)))
    config = search(grid={"lora": ranks, "lorta": ranks[:1]}, ladder=ladder)
    trials = {Trial(multiple, 100) for rung in rungs_of(ladder) for multiple in rung}
    arms = arms_of(config)
    places = {trial_folder(config.output, arm, trial) for arm in arms for trial in trials}
    assert len(places) == len(arms) * len(trials)


def test_the_part_before_halving_shares_its_folder_with_the_whole():
    arm = Arm("lora", 1, 0)
    assert trial_folder(Path("o"), arm, Trial(2.0, 10)) == trial_folder(
        Path("o"), arm, Trial(2.0, 100)
    )


def test_settings_of_a_trial():
    config = search(
        init={"lorta": "paper"},
        adapter=AdapterConfig(targets=("query", "value"), lr_factors={"b": 16.0}),
        allow_leaks=True,
    )
    made = trial_config(config, Arm("lorta", 8, 5), Trial(32.0, 700))
    adapter = made.adapter
    assert (adapter.kind, adapter.rank, adapter.alpha, adapter.init) == ("lorta", 8, 256.0, "paper")
    assert (adapter.targets, adapter.lr_factors) == (("query", "value"), {"b": 16.0})
    assert made.run == Path("out/trials/lorta_r8_seed5/alpha_256/run")
    assert (made.seed, made.resume, made.engine.steps) == (5, "auto", 700)
    assert made.engine == replace(config.engine, steps=700)
    assert trial_config(config, Arm("lora", 1, 0), Trial(2.0, 9)).adapter.init == "unit"


def test_all_other_settings_are_the_searchs():
    config = search(start_from=Path("stage1/run"), allow_leaks=True)
    made = trial_config(config, Arm("lora", 4, 0), Trial(1.0, 10))
    for name in {f.name for f in fields(TrainConfig)} - {"run", "adapter", "engine", "seed"}:
        if name != "resume":
            assert getattr(made, name) == getattr(config, name), name


@pytest.mark.parametrize("kind", ["vera", "ia3", "bitfit", "none", "full"])
def test_what_has_no_alpha_or_rank_leaves_them_at_their_defaults(kind: str):
    config = search(grid={kind: [] if kind in WITHOUT_RANK else [4]})
    (arm,) = arms_of(config)
    adapter = trial_config(config, arm, Trial(1.0, 10)).adapter
    assert adapter.kind == kind
    assert adapter.alpha == AdapterConfig.alpha
    assert adapter.rank == (arm.rank or AdapterConfig.rank)


def test_trials_of_an_arm_differ_in_alpha_folder_and_nothing_else():
    config = search()
    arm = Arm("lorta", 8, 0)
    made = [
        trial_config(config, arm, Trial(m, 100)) for rung in rungs_of(config.ladder) for m in rung
    ]
    for one, other in combinations(made, 2):
        assert one.run != other.run
        assert one.adapter.alpha != other.adapter.alpha
        alike = replace(one.adapter, alpha=other.adapter.alpha)
        assert replace(one, run=other.run, adapter=alike) == other
