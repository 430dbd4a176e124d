"""The shipped configurations say what the papers say."""

import re
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.insert import build_adapter, count
from esmfold_peft.config import (
    AdapterConfig,
    DataConfig,
    ExecutorConfig,
    LadderConfig,
    OptimizerConfig,
    SearchConfig,
    TrainConfig,
)
from esmfold_peft.config.parsing import config_parser, config_text, read_config, to_config
from esmfold_peft.config.unused import (
    refuse_unused,
    refuse_unused_of_search,
    without_unused,
)
from esmfold_peft.errors import UserError
from esmfold_peft.search.grid import Arm, arms_of, trial_config
from esmfold_peft.search.ladder import Trial
from esmfold_peft.training.beginning import changed_settings

CONFIGS = Path(__file__).parents[1] / "configs"
SEARCHES = [CONFIGS / "paper" / f"{name}.yaml" for name in ("figure5", "table10")]
DISTILLATION = CONFIGS / "distillation.yaml"
NANO_SEARCH = CONFIGS / "nano" / "table10.yaml"
TRAININGS = sorted({*CONFIGS.rglob("*.yaml")} - {*SEARCHES, NANO_SEARCH})
PAPER = sorted(set((CONFIGS / "paper").glob("*.yaml")) - set(SEARCHES))
ESM2_35M = AttentionShape(layers=12, width=480, heads=20)

# LoRTA section 4.4 and appendix E.4, and where they name AF2 and OpenFold, those.
COMMON = {
    "model": {
        "language_model": {"name": "esm2_t12_35M_UR50D", "weights": "pretrained"},
        "evoformer": {"blocks": 12},
        "max_recycles": 3,
    },
    "loss": {
        "weights": {
            "fape": 1.0, "chi": 1.0, "distogram": 0.3, "plddt": 0.01,
            "resolved": 0.0, "violation": 0.0, "pae": 0.0,
        },
        "clamp_probability": 0.9,
        "resolution": [0.1, 3.0],
    },
    "data": {"crop": 256, "cluster_weight": "inverse", "length_weight": True},
    "optimizer": {
        "lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-5, "eps_adapter": 1e-5, "warmup_steps": 1000,
        "schedule": "openfold", "decay_steps": 50_000, "clip_norm": 0.1, "ema": 0.999,
    },
    "guard": {"update_limit": 10.0},
    "engine": {"precision": "bf16", "batch_size": 32, "steps": 850_000},
}  # fmt: skip


def config_of(*paths: Path) -> TrainConfig:
    """What a training with these files has, the last one on top."""
    parser = config_parser(TrainConfig)
    parsed = parser.parse_args([*files(paths), "--run", "r", "--data.train", "t"])
    return to_config(parser, parsed, TrainConfig)


def search_of(*paths: Path) -> SearchConfig:
    """What a search with these files has, the last one on top."""
    parser = config_parser(SearchConfig)
    flags = ["--output", "o", "--data.train", "t", "--data.validation", "v"]
    return to_config(parser, parser.parse_args([*files(paths), *flags]), SearchConfig)


def files(paths: Iterable[Path]) -> list[str]:
    return [f"--config={path}" for path in paths]


def test_the_folder_has_table_10_and_its_two_ends():
    names = ["frozen", "full", "lora_r1", "lorta_r1", "lorta_r64", "lorta_r8"]
    assert [path.stem for path in PAPER] == names


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_a_paper_config_states_all_that_the_paper_fixes_and_differs_in_the_adapter(path: Path):
    stated: dict[str, Any] = yaml.safe_load(path.read_text())
    kind = stated.pop("adapter")["kind"]
    if kind in ("none", "full"):
        stated["optimizer"]["eps_adapter"] = 1e-5  # there is no adapter to have one
    assert stated == COMMON
    assert config_of(path).adapter.kind == kind


@pytest.mark.parametrize(
    ("name", "kind", "rank", "scale", "trainable", "init"),
    [
        ("lora_r1", "lora", 1, 128.0, 34_560, "unit"),
        ("lorta_r1", "lorta", 1, 2.0, 539, "paper"),
        ("lorta_r8", "lorta", 8, 32.0, 8 * 539, "paper"),
        ("lorta_r64", "lorta", 64, 2.0, 64 * 539, "paper"),
    ],
)
def test_adapters_of_table_10(
    name: str, kind: str, rank: int, scale: float, trainable: int, init: str
):
    adapter = config_of(CONFIGS / "paper" / f"{name}.yaml").adapter
    assert (adapter.kind, adapter.rank, adapter.init) == (kind, rank, init)
    assert adapter.targets == ("query", "key", "value")
    assert count(ESM2_35M, adapter).trainable == trainable
    assert build_adapter(ESM2_35M, adapter).scale == scale == adapter.alpha / rank


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_the_searches_train_the_winners_of_table_10_as_their_own_files_do(path: Path):
    stated = yaml.safe_load(path.read_text())
    assert {name: stated[name] for name in COMMON} == COMMON
    assert stated["ladder"].keys() == {f.name for f in fields(LadderConfig)}
    search = search_of(path)
    for name, kind, rank, multiple in (
        ("lora_r1", "lora", 1, 128.0), ("lorta_r1", "lorta", 1, 2.0),
        ("lorta_r8", "lorta", 8, 32.0), ("lorta_r64", "lorta", 64, 2.0),
    ):  # fmt: skip
        made = trial_config(search, Arm(kind, rank, 0), Trial(multiple, 850_000))
        own = config_of(CONFIGS / "paper" / f"{name}.yaml")
        data = replace(own.data, validation=search.data.validation)
        assert made == replace(own, run=made.run, resume="auto", data=data)


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_overlay_of_distillation_mixes_in_openfolds_share_and_changes_nothing_else(path: Path):
    alone, mixed = config_of(path), config_of(path, DISTILLATION)
    assert alone.data.mix == {}
    assert mixed == replace(alone, data=replace(alone.data, mix={"chains/distilled": 0.75}))
    assert mixed.data.shares == [(Path("t"), 0.25), (Path("chains/distilled"), 0.75)]


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_the_overlay_of_distillation_reaches_the_trials_of_a_search(path: Path):
    search = search_of(path, DISTILLATION)
    made = trial_config(search, arms_of(search)[0], Trial(2.0, 10))
    assert made.data.mix == {"chains/distilled": 0.75}


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_training_takes_the_settings_of_every_trial_of_the_searches(path: Path):
    search = search_of(path)
    for arm in arms_of(search):
        made = trial_config(search, arm, Trial(2.0, 850_000))
        refuse_unused(made)
        own = None if arm.kind in ("none", "full") else 1e-5
        assert made.optimizer.eps == 1e-5
        assert made.optimizer.eps_adapter == (own or OptimizerConfig().eps_adapter)


VALIDATED = TrainConfig(Path("run"), DataConfig(Path("train"), Path("validation")))


def changed(config: Any, settings: dict[str, Any]) -> Any:
    """Settings with some changed, whose names have dots."""
    for name, value in settings.items():
        first, _, rest = name.partition(".")
        inner = changed(getattr(config, first), {rest: value}) if rest else value
        config = replace(config, **{first: inner})
    return config


@pytest.mark.parametrize(
    ("setting", "value", "switch"),
    [
        ("model.evoformer.blocks", 6, {"model.trunk": "esmfold_v1"}),
        ("model.evoformer.recompute", False, {"model.trunk": "esmfold_v1"}),
        ("model.esmfold.weights", "random", {}),
        ("model.esmfold.blocks", 6, {"model.trunk": "evoformer"}),
        ("adapter.freeze", ("zzz",), {"adapter.kind": "none"}),
        ("adapter.rank", 8, {"adapter.kind": "none"}),
        ("adapter.targets", ("query",), {"adapter.kind": "full"}),
        ("adapter.rank", 8, {"adapter.kind": "ia3"}),
        ("adapter.alpha", 2.0, {"adapter.kind": "vera"}),
        ("adapter.scaling", "constant", {"adapter.kind": "bitfit"}),
        ("adapter.tt_rank", 3, {"adapter.kind": "lorta"}),
        ("adapter.modes", ("heads",), {"adapter.kind": "lora"}),
        ("loss.clamp_probability", 0.5, {"loss.weights.fape": 0.0}),
        ("loss.resolution", None, {"loss.weights.plddt": 0.0}),
        ("optimizer.decay_steps", 10, {"optimizer.schedule": "constant"}),
        ("optimizer.lr_adapter", 2.0, {"adapter.kind": "none"}),
        ("optimizer.eps_adapter", 1e-4, {"adapter.kind": "none"}),
        ("optimizer.eps_adapter", 1e-4, {"adapter.kind": "full"}),
        ("optimizer.lr_head", 2.0, {"model.trunk": "esmfold_v1", "model.freeze": ("head",)}),
        ("guard.update_limit", 3.0, {"adapter.kind": "full"}),
        ("guard.update_limit", 3.0, {"adapter.kind": "loretta_adp"}),
        ("guard.score_floor", 0.1, {"guard.score_step": None}),
        ("guard.loss_factor", 3.0, {"guard.loss_steps": 0}),
        ("guard.plateau_gain", 0.1, {"guard.plateau_steps": 0}),
        ("guard.smoothing", 7, {"guard.loss_steps": 0, "guard.plateau_steps": 0}),
        ("engine.validate_raw", False, {"data.validation": None}),
        ("guard.score_step", 10, {"data.validation": None}),
    ],
)
def test_a_setting_that_reaches_nothing_is_refused(setting: str, value: Any, switch: dict):
    refuse_unused(changed(VALIDATED, switch))
    with pytest.raises(UserError, match=rf"^{re.escape(setting)}: has no effect with .*; leave it"):
        refuse_unused(changed(VALIDATED, {setting: value, **switch}))


def test_a_run_of_before_these_settings_is_read_as_it_was(tmp_path: Path):
    stored = yaml.safe_load(config_text(VALIDATED))
    del stored["optimizer"]["eps_adapter"], stored["guard"]["update_limit"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    found = read_config(tmp_path / "config.yaml", TrainConfig)
    assert (found.optimizer.eps_adapter, found.guard.update_limit) == (None, 0.0)
    # Going on takes the one that it was trained with, by either name, and no other.
    same = changed(VALIDATED, {"optimizer.eps_adapter": found.optimizer.eps})
    assert changed_settings(found, same) == []
    assert changed_settings(found, VALIDATED) == ["optimizer.eps_adapter is 1e-15, was 1e-05"]


def test_settings_written_out_at_their_defaults_are_taken(tmp_path: Path):
    config = changed(VALIDATED, {"adapter.kind": "none", "model.trunk": "esmfold_v1"})
    (tmp_path / "config.yaml").write_text(config_text(config))
    refuse_unused(read_config(tmp_path / "config.yaml", TrainConfig))


@pytest.mark.parametrize("path", TRAININGS, ids=str)
def test_all_that_a_shipped_config_states_has_an_effect(path: Path):
    refuse_unused(config_of(path))


@pytest.mark.parametrize("scale", [[], ["gpu"]], ids=str)
def test_the_miniature_of_table_10_is_the_papers_search_of_smaller_runs(scale: list[str]):
    base = [CONFIGS / "nano" / f"{name}.yaml" for name in ("base", *scale)]
    search, paper = search_of(*base, NANO_SEARCH), search_of(SEARCHES[1])
    assert (search.grid, search.init) == (paper.grid, paper.init)
    assert (search.ladder.multiples, search.ladder.factor) == (paper.ladder.multiples, 4.0)
    for arm in arms_of(search):
        made = trial_config(search, arm, Trial(2.0, search.engine.steps))
        refuse_unused(made)
        assert made.model == config_of(*base).model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"adapter": AdapterConfig(rank=8)},
            "adapter.rank: has no effect with a grid, ",
        ),
        ({"adapter": AdapterConfig(bases=8)}, "adapter.bases: has no effect with the kinds lora, "),
        ({"init": {"none": "paper"}}, "init.none: has no effect, none starts no factors"),
        ({"grid": {"ia3": []}, "ladder": LadderConfig(factor=2.0)}, "ladder.factor: has no effect"),
        (
            {"grid": {"ia3": [], "none": []}, "ladder": LadderConfig(beat_frozen=False)},
            "ladder.beat_frozen: has no effect with the kinds ia3, none; leave it at True",
        ),
        (
            {"grid": {"lora": [1]}, "ladder": LadderConfig(beat_frozen=False)},
            "ladder.beat_frozen: has no effect with a grid without none; leave it at True",
        ),
        ({"executor": ExecutorConfig(gpus=0.5)}, "executor.gpus: has no effect with executor.kind"),
        ({"executor": ExecutorConfig("ray", slurm={"x": 1})}, "executor.slurm: has no effect"),
    ],
)
def test_a_setting_that_reaches_no_trial_is_refused(changes: dict[str, Any], message: str):
    data = DataConfig(Path("t"), Path("v"))
    search = SearchConfig(Path("o"), data, {"lora": [1], "lorta": [8], "none": []})
    refuse_unused_of_search(search)
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        refuse_unused_of_search(replace(search, **changes))


def test_each_kind_of_a_grid_takes_what_it_uses_of_the_common_settings():
    data, grid = DataConfig(Path("t"), Path("v")), {"lora": [1], "lorta": [8], "none": []}
    adapter = AdapterConfig(modes=("heads",), targets=("query",))
    search = SearchConfig(Path("o"), data, grid, adapter=adapter)
    refuse_unused_of_search(search)
    made = [trial_config(search, arm, Trial(2.0, 10)) for arm in arms_of(search)]
    refuse_unused(*made)
    # What the frozen baseline has no use for is not refused for the sake of the others.
    of_adapters = {"optimizer.lr_adapter": 2.0, "guard.update_limit": 3.0}
    refuse_unused(*(changed(config, of_adapters) for config in made))
    assert without_unused(changed(made[-1], of_adapters)) == made[-1]
    assert without_unused(changed(made[0], of_adapters)) == changed(made[0], of_adapters)
    with pytest.raises(UserError, match=r"^optimizer\.lr_adapter: has no effect"):
        refuse_unused(changed(made[-1], of_adapters))
    of_none = {"optimizer.schedule": "constant", "optimizer.decay_steps": 7}
    made = [changed(config, of_adapters | of_none) for config in made]
    with pytest.raises(UserError, match=r"^optimizer\.decay_steps: has no effect"):
        refuse_unused(*made)
    assert [config.adapter for config in made] == [
        AdapterConfig("lora", 1, 2.0, targets=("query",)),
        AdapterConfig("lorta", 8, 16.0, targets=("query",), modes=("heads",)),
        AdapterConfig("none"),
    ]
