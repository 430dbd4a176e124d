"""Every wrong setting of a search is one line that names it and its value."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from esmfold_peft.config import SearchConfig
from esmfold_peft.config.adapter import WITHOUT_ALPHA, WITHOUT_RANK
from esmfold_peft.config.parsing import config_of, config_text, read_config
from esmfold_peft.errors import UserError

GOOD: dict[str, Any] = {
    "output": "search",
    "data": {"train": "train", "validation": "validation"},
    "grid": {"lora": [1], "lorta": [1, 8, 64], "none": [], "full": []},
}


def settings(changes: dict[str, Any]) -> dict[str, Any]:
    """Good settings with some changed; a setting's name may have dots."""
    values = {**GOOD, "data": dict(GOOD["data"])}
    for name, value in changes.items():
        *parts, last = name.split(".")
        inner = values
        for part in parts:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return values


OUT_OF_BOUNDS = {
    "no multiples": ({"ladder.multiples": []}, "ladder.multiples: []"),
    "a multiple twice": ({"ladder.multiples": [8, 2, 8]}, "ladder.multiples: [8.0, 2.0, 8.0]"),
    "multiple 0": ({"ladder.multiples": [8, 0]}, "ladder.multiples: 0 is"),
    "multiple below 0": ({"ladder.multiples": [-2]}, "ladder.multiples: -2 is"),
    "multiple nan": ({"ladder.multiples": [math.nan]}, "ladder.multiples: nan is"),
    "multiple inf": ({"ladder.multiples": [math.inf]}, "ladder.multiples: inf is"),
    "factor 1": ({"ladder.factor": 1}, "ladder.factor: 1 is less than 1.1"),
    "factor nan": ({"ladder.factor": math.nan}, "ladder.factor: nan is less than 1.1"),
    "floor 0": ({"ladder.floor": 0}, "ladder.floor: 0 is not above 0"),
    "floor nan": ({"ladder.floor": math.nan}, "ladder.floor: nan is not above 0"),
    "floor above the first pair": (
        {"ladder.floor": 200},
        "ladder.floor: 200 is above 128, one of the ladder.multiples",
    ),
    "halving at once": ({"ladder.halve_at": 0}, "ladder.halve_at: 0 is less than 1"),
    "halving at the end": (
        {"ladder.halve_at": 100, "engine.steps": 100},
        "ladder.halve_at: 100 is not before the end of a trial (engine.steps 100)",
    ),
    "score that is not taken": (
        {"ladder.metric": "raw", "engine.validate_raw": False},
        "ladder.metric: raw needs engine.validate_raw",
    ),
    "no trial at a time": ({"executor.concurrent": 0}, "executor.concurrent: 0 is less than 1"),
    "no CPU": ({"executor.cpus": 0}, "executor.cpus: 0 is less than 1"),
    "retries": ({"executor.retries": -1}, "executor.retries: -1 is less than 0"),
    "poll": ({"executor.poll_seconds": -0.5}, "executor.poll_seconds: -0.5 is less than 0"),
    "gpus": ({"executor.gpus": -1}, "executor.gpus: -1.0 is less than 0"),
    "empty grid": ({"grid": {}}, "grid: empty; name at least one kind"),
    "unknown adapter": ({"grid": {"lorra": [1]}}, "grid: 'lorra' is none of none, full, lora"),
    "rank where there is none": ({"grid": {"full": [1]}}, "grid.full: [1]: this kind has no rank"),
    "no ranks": ({"grid": {"lora": []}}, "grid.lora: empty"),
    "rank 0": ({"grid": {"lora": [1, 0]}}, "grid.lora: [1, 0]: give each rank once"),
    "rank twice": ({"grid": {"lora": [8, 8]}}, "grid.lora: [8, 8]: give each rank once"),
    "no seeds": ({"seeds": []}, "seeds: []: give at least one, each once, from 0 on"),
    "seed twice": ({"seeds": [1, 1]}, "seeds: [1, 1]: give at least one, each once, from 0 on"),
    "seed below 0": ({"seeds": [0, -1]}, "seeds: [0, -1]: give at least one, each once, from 0 on"),
    "start of another": ({"init": {"dora": "paper"}}, "init: dora is not in the grid"),
    "start that a kind lacks": (
        {"grid": {"tt_lora": [1], "lora": [1]}, "init": {"lora": "direct"}},
        "init: direct has no meaning for lora, which is in the grid",
    ),
    "no validation chains": (
        {"data.validation": None},
        "data.validation: missing",
    ),
    "no steps": ({"engine.steps": 0}, "engine.steps: 0: a trial needs at least 1"),
}

OF_ANOTHER_KIND = {
    "unknown executor": ({"executor.kind": "kubernetes"}, "executor.kind", "kubernetes"),
    "unknown metric": ({"ladder.metric": "rmsd"}, "ladder.metric", "rmsd"),
    "unknown choice": ({"ladder.select": "first"}, "ladder.select", "first"),
    "unknown start": ({"init": {"lora": "zero"}}, "init", "zero"),
    "half a step": ({"ladder.halve_at": 1.5}, "ladder.halve_at", "1.5"),
    "a word for a number": ({"executor.concurrent": "all"}, "executor.concurrent", "all"),
    "a word for a rank": ({"grid": {"lora": ["one"]}}, "grid", "one"),
    "one rank without a list": ({"grid": {"lora": 8}}, "grid", "8"),
    "null for ranks": ({"grid": {"none": None}}, "grid", "None"),
    "unknown key of the ladder": ({"ladder.flor": 1}, "ladder", "flor"),
    "unknown key of the executor": ({"executor.workers": 2}, "executor", "workers"),
    "unknown key": ({"rank": 8}, "", "rank"),
    "a single training's key": ({"resume": "auto"}, "", "resume"),
    "null": ({"ladder.multiples": None}, "ladder.multiples", "null"),
}


def messages(values: dict[str, Any], folder: Path) -> list[str]:
    """What is said of settings in a YAML file, and of the same that another file holds."""
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError) as read:
        read_config(path, SearchConfig)
    with pytest.raises(UserError) as held:
        config_of(values, SearchConfig, path)
    said = [str(error.value) for error in (read, held)]
    assert all(text.startswith(f"{path}: ") and "\n" not in text for text in said)
    return [text.removeprefix(f"{path}: ") for text in said]


@pytest.mark.parametrize("case", OUT_OF_BOUNDS)
def test_a_value_that_cannot_be(case: str, tmp_path: Path):
    changes, said = OUT_OF_BOUNDS[case]
    for text in messages(settings(changes), tmp_path):
        assert text.startswith(said)


@pytest.mark.parametrize("case", OF_ANOTHER_KIND)
def test_a_value_of_another_kind_and_a_key_that_is_not_there(case: str, tmp_path: Path):
    changes, name, value = OF_ANOTHER_KIND[case]
    for text in messages(settings(changes), tmp_path):
        assert name in text
        assert value in text


@pytest.mark.parametrize("name", ["output", "grid", "data"])
def test_what_must_be_given(name: str, tmp_path: Path):
    values = {key: value for key, value in GOOD.items() if key != name}
    for text in messages(values, tmp_path):
        assert name in text


def test_the_papers_search_is_the_default(tmp_path: Path):
    config = config_of(GOOD, SearchConfig, tmp_path)
    ladder = config.ladder
    assert (ladder.multiples, ladder.factor, ladder.floor) == ((256.0, 128.0), 4.0, 0.5)
    assert ladder.halve_at is None
    assert (config.engine.steps, config.seeds, config.executor.kind) == (850_000, (0,), "local")


def test_settings_are_the_same_after_a_file(tmp_path: Path):
    changes = {
        "seeds": [3, 1],
        "init": {"lorta": "paper"},
        "ladder.halve_at": 1000,
        "executor.kind": "ray",
        "executor.gpus": 0.5,
    }
    config = config_of(settings(changes), SearchConfig, tmp_path)
    path = tmp_path / "search.yaml"
    path.write_text(config_text(config))
    assert read_config(path, SearchConfig) == config
    assert (config.executor.kind, config.executor.gpus) == ("ray", 0.5)


def test_what_has_no_rank_has_no_alpha_to_search():
    assert set(WITHOUT_RANK) < set(WITHOUT_ALPHA)
