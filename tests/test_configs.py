"""The shipped configurations say what the papers say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.count import count
from esmfold_peft.adapters.insert import build_adapter
from esmfold_peft.config import SearchConfig, TrainConfig
from esmfold_peft.config_io import config_parser, to_config
from esmfold_peft.search.grid import Arm, trial_config
from esmfold_peft.search.ladder import Trial

CONFIGS = Path(__file__).parents[1] / "configs"
SEARCHES = [CONFIGS / "paper" / f"{name}.yaml" for name in ("figure5", "table10")]
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
        "lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-5, "warmup_steps": 1000,
        "schedule": "openfold", "decay_steps": 50_000, "clip_norm": 0.1, "ema": 0.999,
    },
    "engine": {"precision": "bf16", "batch_size": 32, "steps": 850_000},
}  # fmt: skip


def config_of(path: Path) -> TrainConfig:
    """What a training with this file has."""
    parser = config_parser(TrainConfig)
    parsed = parser.parse_args(["--config", str(path), "--run", "r", "--data.train", "t"])
    return to_config(parser, parsed, TrainConfig)


def test_the_folder_has_table_10_and_its_two_ends():
    names = ["frozen", "full", "lora_r1", "lorta_r1", "lorta_r64", "lorta_r8"]
    assert [path.stem for path in PAPER] == names


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_a_paper_config_states_all_that_the_paper_fixes_and_differs_in_the_adapter(path: Path):
    stated: dict[str, Any] = yaml.safe_load(path.read_text())
    kind = stated.pop("adapter")["kind"]
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
    parser = config_parser(SearchConfig)
    flags = ["--output", "o", "--data.train", "t", "--data.validation", "v"]
    search = to_config(parser, parser.parse_args(["--config", str(path), *flags]), SearchConfig)
    for name, kind, rank, multiple in (
        ("lora_r1", "lora", 1, 128.0), ("lorta_r1", "lorta", 1, 2.0),
        ("lorta_r8", "lorta", 8, 32.0), ("lorta_r64", "lorta", 64, 2.0),
    ):  # fmt: skip
        made = trial_config(search, Arm(kind, rank, 0), Trial(multiple, 850_000))
        own = config_of(CONFIGS / "paper" / f"{name}.yaml")
        data = replace(own.data, validation=search.data.validation)
        assert made == replace(own, run=made.run, resume="auto", data=data)
